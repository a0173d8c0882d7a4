"""Which engine of a bundle is the fastest on this machine: measured on demand, kept in the manifest, used by auto."""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engines import host
from engines.bundle import Bundle, keep_rankings
from engines.errors import BundleError
from engines.load import BACKENDS, backend_module

_log = logging.getLogger("edge.engines")

MIN_GAIN = 1.05
"""A lower precision must be faster than FP32 by more than the noise of a measurement."""

_CHANGES = {
    "has_cuda": "a GPU has come or gone",
    "gpus": "the GPU is another one",
    "backends": "a backend has come or gone",
    "libraries": "a library is another version",
    "files": "the bundle's engines are others",
}
"""What a ranking depends on beside the hardware, and what is told where it has changed."""


class Ranked(NamedTuple):
    """One engine's speed."""

    backend: str
    device: str
    precision: str
    p50_ms: float
    """Median time a window, one at a time."""

    def __str__(self) -> str:
        return f"{self.backend} {self.device} {self.precision} {self.p50_ms:.1f} ms"


def engines_here(bundle: Bundle) -> Iterator[tuple[str, str | None, str]]:
    """Yield backend, device and precision of every engine of the bundle that this machine might run."""
    for backend in BACKENDS:
        module = backend_module(backend)
        if module.probe() is not None:
            continue
        for device in module.devices():
            for precision in module.precisions(bundle, device):
                yield backend, device, precision


def ranked_here(bundle: Bundle) -> tuple[Ranked, ...]:
    """Return the engines that were measured on this machine, the best first.

    Where something has changed since, there are none, and the log says what has, and the command that measures anew.

    Raises:
        BundleError: The manifest's ranking is damaged.
    """
    if not bundle.rankings:
        return ()
    here = _circumstances(bundle)
    of_here = [ranking for ranking in bundle.rankings if _hardware(ranking) == here["hardware"]]
    found = [ranking for ranking in of_here if ranking["circumstances"] == here]
    if not of_here:
        _log.info(
            "auto: the order that %s keeps was measured on other hardware (%s); measure on this: edge-build %s --rank",
            bundle.path,
            host.differences(_hardware(bundle.rankings[-1]), here["hardware"]),
            bundle.shell_path,
        )
    if of_here and not found:
        _log.warning(
            "auto: the order measured on this machine no longer holds (%s); measure anew: edge-build %s --rank",
            "; ".join(_changes(_nearest(of_here, here)["circumstances"], here)),
            bundle.shell_path,
        )
    try:
        return tuple(_parse(entry) for ranking in found for entry in ranking["engines"])
    except (KeyError, TypeError, ValueError, OverflowError) as exc:
        raise BundleError(
            f"{bundle.path}: the manifest's ranking is damaged ({exc}); "
            f"rank anew: edge-build {bundle.shell_path} --rank"
        ) from exc


def keep_ranking(bundle: Bundle, engines: Iterable[Ranked]) -> Bundle:
    """Keep the engines' order, in place of what was measured on this machine with these GPUs before.

    Raises:
        BundleError: The manifest cannot be read or written.
    """
    here = _circumstances(bundle)
    ordered = sorted(engines, key=lambda one: one.p50_ms * (1 if one.precision == "fp32" else MIN_GAIN))
    ranking = {"circumstances": here, "engines": [engine._asdict() for engine in ordered]}
    others = [other for other in bundle.rankings if _hardware(other) != here["hardware"] or not _has_gpus(other, here)]
    return keep_rankings(bundle, (*others, ranking))


def _circumstances(bundle: Bundle) -> dict[str, Any]:
    """Return what a ranking depends on, as JSON."""
    return {
        "hardware": host.describe(),
        "has_cuda": host.cuda_trouble() is None,
        "gpus": host.gpu_names(),
        "backends": [name for name in BACKENDS if backend_module(name).probe() is None],
        "libraries": host.library_versions(),
        "files": sorted(file.sha256 for file in bundle.files if file.kind != "reference"),
    }


def _changes(before: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what differs; `before` may be what an older version of this project or anybody wrote."""
    if not _CHANGES.keys() <= before.keys():
        yield "an older version kept it"
        return
    for key, words in _CHANGES.items():
        if before[key] != here[key]:
            yield words + (_versions(before[key], here[key]) if key == "libraries" else "")


def _versions(before: Any, here: Mapping[str, str]) -> str:
    was = before if isinstance(before, dict) else {}
    names = sorted(name for name in {*was, *here} if was.get(name) != here.get(name))
    return ": " + ", ".join(f"{name} {here.get(name, 'gone')}, was {was.get(name, 'not there')}" for name in names)


def _hardware(ranking: Mapping[str, Any]) -> Any:
    """Return where it was measured; None where it does not say: that one is of no use, and does no harm."""
    circumstances = ranking.get("circumstances")
    return circumstances.get("hardware") if isinstance(circumstances, dict) else None


def _has_gpus(ranking: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether it was measured beside the GPUs of here: machines of one processor may differ in these alone.

    One that an older version kept does not say; it was measured here as far as is known.
    """
    return bool(ranking["circumstances"].get("gpus", here["gpus"]) == here["gpus"])


def _nearest(rankings: Sequence[Mapping[str, Any]], here: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the newest that was measured beside the GPUs of here, or else the newest."""
    return max(reversed(rankings), key=lambda ranking: _has_gpus(ranking, here))


def _parse(entry: dict[str, Any]) -> Ranked:
    engine = Ranked(**entry)
    if engine.backend not in BACKENDS or not all(isinstance(name, str) for name in engine[:3]):
        raise ValueError(f"{entry} names no engine")
    if type(engine.p50_ms) not in (int, float) or not 0 < float(engine.p50_ms) < math.inf:  # True is a number as well
        raise ValueError(f"p50_ms is {engine.p50_ms!r}")
    return engine
