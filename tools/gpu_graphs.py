"""Measures on a GPU how a window best reaches the network: a CUDA graph a window address, one behind a copy, or none.

The engine keeps the faster kind of graphs by itself; this shows by how much, and what graphs gain over none.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from edge.commandline import Parser, run_command
from edge.errors import ConfigError
from engines import Engine, load_bundle, load_engine
from engines.cuda_engine import CudaEngine
from tools.measures import percentiles

Result = dict[str, Any]

_NUM_WARM = 20


def main() -> int:
    """Run the command."""
    return run_command(_run)


def measure(engine: CudaEngine, clip_tchw: np.ndarray, kinds: tuple[str, ...], num_windows: int) -> list[Result]:
    """Time every kind on the same frames, one new frame a window as live.

    Returns:
        For each kind `graphs`, `device_ms` (the network by CUDA events) and `total_ms` (upload to outputs on the host),
        each with percentiles.
    """
    results = []
    for kind in kinds:
        engine.use_graphs(kind)
        for frame_chw in clip_tchw:
            engine.push(frame_chw)
        device_ms, total_ms = [], []
        for turn in range(_NUM_WARM + num_windows):
            start_s = time.perf_counter()
            engine.push(clip_tchw[turn % len(clip_tchw)])
            engine.infer()
            total_ms.append(1000 * (time.perf_counter() - start_s))
            device_ms.append(engine.device_ms)
        result = {"graphs": kind, "device_ms": percentiles(device_ms[_NUM_WARM:])}
        results.append({**result, "total_ms": percentiles(total_ms[_NUM_WARM:])})
    return results


def _run() -> int:
    parser = Parser(
        "python -m tools.gpu_graphs",
        "Measure CUDA graphs on this machine's GPU.",
        "python -m tools.gpu_graphs build/tin-r50 --backend torch --device cuda:0",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--backend", choices=("torch", "tensorrt"), default="torch", help="(default: %(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(default: %(default)s)")
    parser.add_argument("--precision", default="fp16", help="(default: %(default)s)")
    parser.add_argument("--windows", metavar="N", type=int, default=300, help="a kind (default: %(default)s)")
    options = parser.parse_args()
    if options.windows < 1:
        raise ConfigError(f"--windows is {options.windows}; it must be 1 or more")
    bundle = load_bundle(options.bundle)
    with contextlib.closing(load_engine(bundle, options.backend, options.device, options.precision)) as engine:
        on_gpu = _on_gpu(engine)
        kinds = (*on_gpu.possible_graphs(), "none")
        results = measure(on_gpu, bundle.reference().clips[0], kinds, options.windows)
        name = f"{bundle.name}, {engine.spec.backend} {engine.spec.precision} on {engine.spec.device}"
    _print(name, results)
    return 0


def _on_gpu(engine: Engine) -> CudaEngine:
    if not isinstance(engine, CudaEngine):
        raise ConfigError(f"{engine.spec.device} is no GPU; name a CUDA device")
    return engine


def _print(name: str, results: list[Result]) -> None:
    table = Table(title=name)
    for heading in ("graphs", "device p50 ms", "device p99 ms", "total p50 ms", "total p99 ms"):
        table.add_column(heading)
    for result in results:
        values = [result[place][percentile] for place in ("device_ms", "total_ms") for percentile in ("p50", "p99")]
        table.add_row(result["graphs"], *(f"{value:.3f}" for value in values))
    Console().print(table)
    print(json.dumps({"name": name, "graphs": results}))


if __name__ == "__main__":
    raise SystemExit(main())
