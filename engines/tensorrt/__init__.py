"""The `tensorrt` backend: FP16 plans for NVIDIA GPUs, compiled, checked against the machine, and run.

`import tensorrt` is the library wherever it stands: imports are absolute.
"""
