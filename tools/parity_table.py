"""The parity gate alone: every engine that a bundle has, in one table."""

from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table

from edge.commandline import print_line
from edge.errors import EngineError
from engines import Bundle
from engines.load import BACKENDS, backend_module, engines_of
from engines.parity import ParityResult
from tools.engine_check import Check, check_apart

_DIFFERENCES = ("probability", "allowed", "heatmap", "allowed")


def print_checks(bundle: Bundle, backend: str | None, device: str | None) -> int:
    """Check one backend's engines or all, and print the table; return the exit code.

    Raises:
        EngineError: The backend that was named cannot run here, or the bundle has no engine that can.
    """
    checks = list(check_all(bundle, backend, device))
    _print(bundle, checks)
    for warning in dict.fromkeys(warning for check in checks for warning in check.warnings):
        print_line("warning", warning)
    for check in checks:
        if check.trouble:
            print_line(
                "error" if check.is_refused else "warning",
                f"{f'{check.backend} {check.precision}'.strip()}: {check.trouble}",
            )
    if not any(check.result for check in checks) or any(check.is_refused for check in checks):
        return EngineError.exit_code
    return 0


def check_all(
    bundle: Bundle, backend: str | None, device: str | None, check: Callable[..., Check] = check_apart
) -> Iterator[Check]:
    """Run the reference clips on every engine; one that was named must run, others are left out with their reason."""
    for name in [backend] if backend else BACKENDS:
        module = backend_module(name)
        if (trouble := module.probe()) is not None:
            yield Check(name, "", "", None, f"it cannot run here: {trouble}", is_refused=backend is not None)
            continue
        for one, precision in engines_of(bundle, name, device):
            yield check(bundle, name, precision, one, is_named=backend is not None)


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
