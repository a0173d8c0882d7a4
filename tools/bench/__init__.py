"""`edge-bench`: latency and throughput of engines, of the pipeline and of the bedside page."""
