"""Times every engine of a bundle on this machine, and keeps the order for `--backend auto`."""

import contextlib
import os

from rich.console import Console

from edge.errors import EngineError
from engines import Bundle
from engines.build import alone
from engines.ranking import Ranked, engines_here, keep_ranking
from tools.bench.engine import EngineChoice, measure_engines

_SECONDS = 5.0


def rank(bundle: Bundle) -> int:
    """Measure the engines by turns, each in a process of its own, keep the order and print it; return the exit code.

    Raises:
        EngineError: None runs here, the bundle cannot be written, or another edge-build is at work on it.
    """
    if not os.access(bundle.path, os.W_OK):  # told before minutes of measuring
        raise EngineError(f"{bundle.path} cannot be written, to keep the order in; give it write permission")
    with alone(bundle.path):
        ranked = keep_ranking(bundle, _measure(bundle))
    best, *others = (Ranked(**engine) for engine in ranked.rankings[-1]["engines"])
    print(f"{best} a window: --backend auto takes it on this machine from now on, for all but --pace max")
    for other in others:
        print(f"{other}: {other.p50_ms / best.p50_ms:.2f} times as long")
    return 0


def _measure(bundle: Bundle) -> list[Ranked]:
    choices = [EngineChoice(backend=name, device=device, precision=one) for name, device, one in engines_here(bundle)]
    console = Console(stderr=True)
    telling = f"timing {len(choices)} engines"
    with console.status(telling) if console.is_terminal else contextlib.nullcontext():
        results, _ = measure_engines(bundle.path, choices, _SECONDS, is_strict=False, with_peaks=False)
    if not results:
        where = "why each is left out stands above" if choices else f"edge-build {bundle.shell_path} --check says why"
        raise EngineError(f"no engine of {bundle.path} runs here; {where}")
    return [
        Ranked(result["backend"], result["device"], result["precision"], result["latency_ms"]["p50"])
        for result in results
    ]
