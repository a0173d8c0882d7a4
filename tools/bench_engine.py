"""The bare engine: push and infer in a loop, alone in a process of its own, so that memory and cores are its own."""

import json
import time
from pathlib import Path
from typing import Any

from edge.commandline import Parser, run_command
from engines import Engine, load_bundle, load_engine
from tools.children import peak_rss_mb, running
from tools.measures import percentiles

_LOAD_S = 300.0
_MIN_WINDOWS = 5

Result = dict[str, Any]


def measure_engine(bundle: Path, backend: str, device: str | None, seconds: float) -> Result:
    """Measure in a child process.

    Returns:
        `backend`, `precision`, `device`, `windows_per_s`, `latency_ms`, `load_s`, `rss_mb`, `num_windows`.

    Raises:
        EdgeError: The engine was refused or failed, with its own exit code.
    """
    arguments = [str(bundle), "--backend", backend, "--seconds", f"{seconds}"]
    arguments += ["--device", device] if device else []
    with running("tools.bench_engine", *arguments) as child:
        return dict(json.loads(child.finish(_LOAD_S + 10 * seconds)))


def main() -> int:
    """Run the child's side: `python -m tools.bench_engine BUNDLE --seconds S`."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("bench_engine", "Measure one engine; what edge-bench starts.", "edge-bench engine engines/demo")
    parser.add_argument("bundle")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--device")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    start_s = time.monotonic()
    bundle = load_bundle(options.bundle)
    engine = load_engine(bundle, options.backend, options.device)
    load_s = time.monotonic() - start_s
    try:
        latencies_ms, elapsed_s = _loop(engine, bundle.reference().clips[0], options.seconds)
    finally:
        engine.close()
    result = {
        "backend": engine.spec.backend,
        "precision": engine.spec.precision,
        "device": engine.spec.device,
        "windows_per_s": len(latencies_ms) / elapsed_s,
        "latency_ms": percentiles(latencies_ms),
        "num_windows": len(latencies_ms),
        "load_s": load_s,
        "rss_mb": peak_rss_mb(),
    }
    print(json.dumps(result))
    return 0


def _loop(engine: Engine, clip_tchw: Any, seconds: float) -> tuple[list[float], float]:
    """Push one frame and run, again and again; return each window's time in ms and the whole time in s."""
    engine.run_clip(clip_tchw)
    for frame_chw in clip_tchw:
        engine.push(frame_chw)
    latencies_ms: list[float] = []
    start_s = now_s = time.perf_counter()
    while now_s - start_s < seconds or len(latencies_ms) < _MIN_WINDOWS:
        before_s = now_s
        engine.push(clip_tchw[len(latencies_ms) % len(clip_tchw)])
        engine.infer()
        now_s = time.perf_counter()
        latencies_ms.append((now_s - before_s) * 1e3)
    return latencies_ms, now_s - start_s


if __name__ == "__main__":
    raise SystemExit(main())
