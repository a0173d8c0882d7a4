"""Times every engine of a bundle on this machine, and keeps the order for `--backend auto`."""

import contextlib
from pathlib import Path

from rich.console import Console

from edge.errors import EngineError
from engines import load_bundle
from engines.ranking import Ranked, engines_here, keep_ranking
from tools.bench.engine import EngineChoice, measure_engines

_SECONDS = 5.0


def rank(path: Path) -> int:
    """Measure the engines by turns, each in a process of its own, keep the order and print it; return the exit code.

    Raises:
        EngineError: None runs here.
        BundleError: The manifest cannot be written.
    """
    bundle = load_bundle(path)
    choices = [EngineChoice(backend=name, device=device, precision=one) for name, device, one in engines_here(bundle)]
    console = Console(stderr=True)
    telling = f"timing {len(choices)} engines"
    with console.status(telling) if console.is_terminal else contextlib.nullcontext():
        results, _ = measure_engines(path, choices, _SECONDS, is_strict=False, with_peaks=False)
    if not results:
        raise EngineError(f"no engine of {path} runs here; edge-build {path} --check says why")
    measured = [
        Ranked(result["backend"], result["device"], result["precision"], result["latency_ms"]["p50"])
        for result in results
    ]
    ranked = keep_ranking(bundle, measured)
    best, *others = (Ranked(**engine) for engine in ranked.rankings[-1]["engines"])
    print(f"{best} a window: --backend auto takes it on this machine from now on, for all but --pace max")
    for other in others:
        print(f"{other}: {other.p50_ms / best.p50_ms:.2f} times as long")
    return 0
