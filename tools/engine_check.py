"""The parity gate for one engine, in a process of its own: a library that dies in it ends no check of the others."""

import dataclasses
import json
from typing import Any

from edge.commandline import Parser, log_lines, run_command
from edge.errors import EdgeError, EngineError
from engines import Bundle, load_bundle
from engines.engine import EngineOptions
from engines.errors import BackendError
from engines.load import load_unproven
from engines.parity import ParityResult, Tolerance, measure_parity
from tools.children import running

_MAX_S = 600.0


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One engine's differences, or why there are none."""

    backend: str
    precision: str
    device: str
    result: ParityResult | None
    trouble: str
    is_refused: bool
    """False where it passed, and where this machine merely lacks what the backend needs."""
    warnings: tuple[str, ...] = ()
    """What was said beside it."""


def check_apart(bundle: Bundle, backend: str, precision: str, device: str | None, *, is_named: bool) -> Check:
    """Do as `check_here` in a child process; one that dies is refused."""
    arguments = [str(bundle.path), backend, precision, *(["--device", device] if device else [])]
    try:
        with running("tools.engine_check", *arguments, *(["--named"] if is_named else [])) as child:
            lines = child.finish(_MAX_S).splitlines()
            if not lines:
                raise EngineError("tools.engine_check ended without an answer")
            return dataclasses.replace(_parse(json.loads(lines[-1])), warnings=child.warnings())
    except EdgeError as exc:
        return Check(backend, precision, device or "", None, str(exc), is_refused=True)


def _parse(answer: dict[str, Any]) -> Check:
    if (result := answer["result"]) is not None:
        answer["result"] = ParityResult(**{**result, "tolerance": Tolerance(**result["tolerance"])})
    return Check(**answer)


def check_here(bundle: Bundle, backend: str, precision: str, device: str | None, *, is_named: bool) -> Check:
    """Run the reference clips on an engine.

    Args:
        bundle: A loaded bundle.
        backend: A name from `BACKENDS`.
        precision: One that the bundle has for the backend.
        device: The backend's own name of a device; None: its choice.
        is_named: Whether the backend was asked for by name: then a machine that lacks what it needs is refused.
    """
    try:
        engine = load_unproven(bundle, backend, EngineOptions(device=device, precision=precision))
    except EdgeError as exc:
        is_refused = is_named or not isinstance(exc, BackendError)
        return Check(backend, precision, device or "", None, str(exc), is_refused=is_refused)
    try:
        result = measure_parity(engine, bundle)
    except EdgeError as exc:
        return Check(backend, precision, engine.spec.device, None, str(exc), is_refused=True)
    finally:
        engine.close()
    trouble = "" if result.is_within else f"refused: {result.describe()}"
    return Check(backend, precision, engine.spec.device, result, trouble, is_refused=not result.is_within)


def main() -> int:
    """Run the child's side: one JSON line."""
    log_lines()
    return run_command(_run)


def _run() -> int:
    parser = Parser(
        "engine_check", "Check one engine; what edge-build --check starts.", "edge-build engines/demo --check"
    )
    parser.add_argument("bundle")
    parser.add_argument("backend")
    parser.add_argument("precision")
    parser.add_argument("--device")
    parser.add_argument("--named", action="store_true")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    check = check_here(bundle, options.backend, options.precision, options.device, is_named=options.named)
    print(json.dumps(dataclasses.asdict(check)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
