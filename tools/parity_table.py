"""The parity gate alone: every engine that a bundle has, in one table."""

import dataclasses
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from edge.commandline import print_line
from edge.errors import EdgeError, EngineError
from engines import Bundle
from engines.engine import EngineOptions
from engines.errors import BackendError
from engines.load import BACKENDS, backend_module, devices_of, load_unproven
from engines.parity import ParityResult, measure_parity

_DIFFERENCES = ("probability", "allowed", "heatmap", "allowed")


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


def print_checks(bundle: Bundle, backend: str | None, device: str | None) -> int:
    """Check one backend's engines or all, and print the table; return the exit code.

    Raises:
        EngineError: The backend that was named cannot run here, or the bundle has no engine that can.
    """
    checks = list(check_all(bundle, backend, device))
    _print(bundle, checks)
    for check in checks:
        if check.trouble:
            print_line(
                "error" if check.is_refused else "warning",
                f"{f'{check.backend} {check.precision}'.strip()}: {check.trouble}",
            )
    if not any(check.result for check in checks) or any(check.is_refused for check in checks):
        return EngineError.exit_code
    return 0


def check_all(bundle: Bundle, backend: str | None, device: str | None) -> Iterator[Check]:
    """Run the reference clips on every engine; one that was named must run, others are left out with their reason."""
    for name in [backend] if backend else BACKENDS:
        module = backend_module(name)
        if (trouble := module.probe()) is not None:
            yield Check(name, "", "", None, f"it cannot run here: {trouble}", is_refused=backend is not None)
            continue
        for precision in module.precisions(bundle, device):
            for one in [device] if device else devices_of(bundle, name, precision):
                yield _check(bundle, name, precision, one, is_named=backend is not None)


def _check(bundle: Bundle, backend: str, precision: str, device: str | None, *, is_named: bool) -> Check:
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


def _print(bundle: Bundle, checks: list[Check]) -> None:
    table = Table(
        title=f"{bundle.name}: largest differences from FP32 PyTorch, heatmaps as a share of their peak",
        title_justify="left",
    )
    for column in (
        "backend",
        "precision",
        "device",
        "clips",
        "probability",
        "allowed",
        "heatmap",
        "allowed",
        "top class",
    ):
        table.add_column(column)
    table.add_column("")
    for check in checks:
        table.add_row(check.backend, check.precision, check.device, *_cells(check.result), _verdict(check))
    Console(width=max(124, Console().width)).print(table)


def _cells(result: ParityResult | None) -> list[str]:
    if result is None:
        return ["-"] * 6
    allowed = result.tolerance
    return [
        str(result.num_clips),
        f"{result.probability_difference:.2g}",
        f"{allowed.probability:g}",
        f"{result.heatmap_difference:.2g}",
        f"{allowed.heatmap:g}",
        "equal" if result.is_top_class_equal else "NOT EQUAL",
    ]


def _verdict(check: Check) -> str:
    if check.is_refused:
        return "refused"
    return "passed" if check.result else "not here"
