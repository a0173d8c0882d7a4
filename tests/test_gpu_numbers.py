"""What a GPU must give, by the commands that users run."""

import json

import pytest
from daemon import run_command

from edge.config import DEMO_BUNDLE

ON_GPU = ("--backend", "torch", "--device", "cuda:0")


def bench(*arguments):
    result = run_command(*arguments, module="tools.bench.cli")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.gpu
def test_cuda_graphs_are_twice_as_fast_as_eager_pytorch_on_a_real_gpu():
    report = bench("engine", str(DEMO_BUNDLE), *ON_GPU, "--precision", "fp16", "--seconds", "5")
    graphs, eager = report["engines"]
    assert (graphs["graphs"] in ("window", "fixed"), eager["graphs"]) == (True, "none")
    assert graphs["speedup"] >= 2


@pytest.mark.gpu
def test_latency_to_publication_is_even_on_a_real_gpu():
    report = bench("pipeline", "--source", "demo", *ON_GPU, "--seconds", "20")
    assert report["latency_ms"]["p99"] <= 1.2 * report["latency_ms"]["p50"]
    assert report["skipped"] == 0
