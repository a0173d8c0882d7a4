"""What an evaluation says on the terminal, and how figures are written for people."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from trainer.evaluation.metrics import Metrics

PROPORTIONS = {
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "ppv": "PPV",
    "npv": "NPV",
}
NOTHING = "–"


def percent(value: float | None) -> str:
    """Return a share as percent with two digits, as the paper prints it."""
    return NOTHING if value is None else f"{100 * value:.2f}"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number, or a dash for none."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def percent_interval(ci: list[float] | None) -> str:
    """Return a share's interval in percent."""
    return NOTHING if ci is None else f"{100 * ci[0]:.1f}–{100 * ci[1]:.1f}"


def interval(ci: list[float] | None) -> str:
    """Return an interval with three digits."""
    return NOTHING if ci is None else f"{ci[0]:.3f}–{ci[1]:.3f}"


def p_value(value: float | None) -> str:
    """Return a p-value as journals print it."""
    if value is None:
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def with_error(value: float | None, error: float | None) -> str:
    """Return `0.669 ± 0.098`."""
    return f"{number(value)} ± {number(error)}" if error is not None else number(value)


def told_reasons(metrics: Metrics) -> dict[str, str]:
    """Return why figures are missing; an interval or error that is missing with its figure goes without saying."""
    reasons: dict[str, str] = metrics.get("reasons") or {}
    return {
        name: reason
        for name, reason in reasons.items()
        if (stem := name.removesuffix("_ci").removesuffix("_se")) == name or stem not in reasons
    }


def percent_with_interval(metrics: Metrics, name: str) -> str:
    """Return `85.25 (74.3–92.0)`, or a dash."""
    ci = metrics[f"{name}_ci"]
    return NOTHING if ci is None else f"{percent(metrics[name])} ({percent_interval(ci)})"


def print_summary(metrics: Metrics, out: Path) -> None:
    """Print the figures, and where everything lies."""
    console = Console(highlight=False, soft_wrap=True)
    counts = metrics["counts"]
    num_positive = counts["tp"] + counts["fn"]
    patients = f" of {metrics['num_patients']} patients" if metrics["num_patients"] else ""
    threshold = "of each fold" if metrics["threshold"] is None else f"{metrics['threshold']:.4g}"
    console.print(
        f"{metrics['name']}: {metrics['n']} videos{patients}, {num_positive} positive; "
        f"threshold {threshold}; intervals 95 %, {metrics['interval']}"
    )
    console.print(_table(metrics))
    for reader in metrics["readers"]:
        console.print(
            f"reader {reader['reader']}: kappa {with_error(reader['kappa'], reader['kappa_se'])}, "
            f"sensitivity {percent(reader['sensitivity'])} %, specificity {percent(reader['specificity'])} %, "
            f"McNemar p {p_value(reader['mcnemar']['p_value'])}, DeLong p {p_value(reader['delong']['p_value'])}"
        )
    for name, reason in told_reasons(metrics).items():
        console.print(f"note: {name}: {reason}")
    console.print(f"wrote {out / 'metrics.json'}, tables and pictures; edge-train report {out} --out report.html")


def _table(metrics: Metrics) -> Table:
    levels = {"video": metrics, "patient": metrics["patient_level"]}
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    shown = {level: values for level, values in levels.items() if values}
    for level in shown:
        table.add_column(f"by {level}", justify="right")
        table.add_column("95 % CI")
    for name, label in PROPORTIONS.items():
        cells = [(f"{percent(one[name])} %", percent_interval(one[f"{name}_ci"])) for one in shown.values()]
        table.add_row(label, *(cell for pair in cells for cell in pair))
    cells = [(number(one["auc"]), interval(one["auc_ci"])) for one in shown.values()]
    table.add_row("AUC", *(cell for pair in cells for cell in pair))
    kappas = [(number(one["kappa"]), f"SE {number(one['kappa_se'])}") for one in shown.values()]
    table.add_row("kappa", *(cell for pair in kappas for cell in pair))
    for name, label in {"f1": "F1", "average_precision": "avg. prec.", "brier": "Brier", "ece": "ECE"}.items():
        table.add_row(label, *(cell for one in shown.values() for cell in (number(one[name]), "")))
    return table
