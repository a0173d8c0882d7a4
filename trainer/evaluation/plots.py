"""The pictures of an evaluation: drawn off screen, in colours that colour-blind readers can tell apart."""

import dataclasses
import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

import numpy as np
import numpy.typing as npt

from trainer.evaluation import roc
from trainer.evaluation.calibration import reliability
from trainer.evaluation.decision import decision_curve
from trainer.evaluation.statistics import Counts, Labels
from trainer.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5F6B6D")
"""Okabe and Ito's, without the yellow that white paper swallows."""
INK, FAINT = "#1d2733", "#9aa5b1"
DPI = 200
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#6b7785",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "xtick.color": "#4a5560",
    "ytick.color": "#4a5560",
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.8,
}


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Series:
    """One network on one set of videos."""

    name: str
    labels: Labels
    """(n,) 0 or 1."""
    probabilities: npt.NDArray[np.float64]
    """(n,) in 0..1."""
    threshold: float | npt.NDArray[np.float64]
    """One, or (n,) each video's own."""


@dataclasses.dataclass(frozen=True, slots=True)
class ReaderPoint:
    """One reader's place in a ROC diagram."""

    name: str
    sensitivity: float
    specificity: float


def _styled(draw: Callable[P, "Figure"]) -> Callable[P, "Figure"]:
    """Draw in this project's style, whatever matplotlib's settings are; they stay as they are."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        import matplotlib as mpl

        with mpl.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return styled


@_styled
def draw_roc(series: Sequence[Series], readers: Sequence[ReaderPoint] = ()) -> "Figure":
    """Draw ROC curves with their operating points, and readers as marks."""
    figure, axes = _square("1 - specificity", "sensitivity")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle="--")
    for colour, one in zip(_colours(series), series, strict=True):
        curve, auc = roc.roc_points(one.labels, one.probabilities), roc.auc_delong(one.labels, one.probabilities)
        low, high = auc.ci
        interval = f" ({low:.3f} to {high:.3f})" if np.isfinite(low) else ""
        axes.plot(curve.x, curve.y, color=colour, label=f"{one.name}  {auc.value:.3f}{interval}")
        counts = _counts(one)
        axes.plot(
            counts.fp / (counts.fp + counts.tn),
            counts.tp / (counts.tp + counts.fn),
            "o",
            color=colour,
            markeredgecolor="white",
            markersize=7,
        )
    for marker, reader in zip("^sDvP*X" * len(readers), readers, strict=False):
        place = 1 - reader.specificity, reader.sensitivity
        axes.plot(*place, marker, color=INK, markersize=6.5, linestyle="none", label=f"reader {reader.name}")
    _legend_below(figure, "AUC (95 % CI)")
    return figure


@_styled
def draw_precision_recall(series: Sequence[Series]) -> "Figure":
    """Draw precision-recall curves; the dashed line is the share of positives, what chance gives."""
    figure, axes = _square("recall (sensitivity)", "precision (PPV)")
    for prevalence in sorted({float(np.mean(one.labels)) for one in series}):
        axes.axhline(prevalence, color=FAINT, linewidth=0.8, linestyle="--")
    for colour, one in zip(_colours(series), series, strict=True):
        curve = roc.precision_recall_points(one.labels, one.probabilities)
        area = roc.average_precision(one.labels, one.probabilities)
        axes.step(curve.x, curve.y, where="post", color=colour, label=f"{one.name}  {area:.3f}")
    _legend_below(figure, "average precision")
    return figure


@_styled
def draw_calibration(series: Sequence[Series]) -> "Figure":
    """Draw reliability curves: what happened against what was said; a mark's area tells the bin's share of videos."""
    figure, axes = _square("predicted probability", "share of positive videos")
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.8, linestyle="--")
    for colour, one in zip(_colours(series), series, strict=True):
        bins = reliability(one.labels, one.probabilities)
        x, y = [bin_.mean_probability for bin_ in bins], [bin_.positive_fraction for bin_ in bins]
        brier = roc.brier_score(one.labels, one.probabilities)
        axes.plot(x, y, color=colour, label=f"{one.name}  {brier:.3f}")
        axes.scatter(x, y, [220 * bin_.num / len(one.labels) + 12 for bin_ in bins], color=colour, alpha=0.75, zorder=3)
    _legend_below(figure, "Brier score")
    return figure


@_styled
def draw_decision(series: Sequence[Series]) -> "Figure":
    """Draw net benefit against the probability from which on the user would act."""
    figure, axes = _figure(4.6, 4.6)
    shown = [(one, decision_curve(one.labels, one.probabilities)) for one in series]
    for one, curve in shown[:1]:
        axes.plot(curve.thresholds, curve.all, color=FAINT, linewidth=1.2, label="all positive")
        axes.axhline(0, color=INK, linewidth=0.8, linestyle=":", label="none positive")
        prevalence = float(np.mean(one.labels))
    for colour, (one, curve) in zip(_colours(series), shown, strict=True):
        axes.plot(curve.thresholds, curve.model, color=colour, label=one.name)
    axes.set(
        xlabel="threshold probability", ylabel="net benefit", xlim=(0, 1), ylim=(-0.35 * prevalence, 1.08 * prevalence)
    )
    _legend_below(figure, "")
    return figure


@_styled
def draw_confusion(series: Sequence[Series], classes: Sequence[str] = ("negative", "positive")) -> "Figure":
    """Draw one confusion matrix a network, with counts and shares of each row."""
    columns = min(3, len(series))
    rows = -(-len(series) // columns)
    figure, grid = _new_figure(2.6 * columns + 0.5, 2.75 * rows + 0.2, rows, columns)
    for place, axes in enumerate(grid):
        if place < len(series):
            _draw_matrix(axes, series[place], classes)
        else:
            axes.axis("off")
    return figure


@_styled
def draw_history(
    name: str, epochs: Sequence[float], losses: dict[str, Sequence[float]], accuracies: dict[str, Sequence[float]]
) -> "Figure":
    """Draw one training's loss and accuracy, an epoch a step; missing values are NaN."""
    figure, (left, right) = _new_figure(7.4, 2.9, 1, 2)
    for axes, curves, label in ((left, losses, "loss"), (right, accuracies, "accuracy")):
        for colour, (part, values) in zip(COLOURS, curves.items(), strict=False):
            known = np.isfinite(np.asarray(values, float))
            marker = "o" if known.sum() < 2 else None
            axes.plot(
                np.asarray(epochs)[known], np.asarray(values, float)[known], color=colour, label=part, marker=marker
            )
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(color="#e5e9ee", linewidth=0.6)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if curves:
            axes.legend(loc="best")
    right.set_ylim(0, 1.02)
    figure.suptitle(name, fontsize=9.5, x=0.02, ha="left")
    return figure


def save_png(figure: "Figure", path: Path) -> None:
    """Write a figure as PNG, whole or not at all; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    write_atomic(path, buffer.getvalue())


PICTURES: dict[str, Callable[[Sequence[Series]], "Figure"]] = {
    "pr.png": draw_precision_recall,
    "calibration.png": draw_calibration,
    "decision.png": draw_decision,
    "confusion.png": draw_confusion,
}
"""What is drawn of every evaluation, beside roc.png, which shows the readers too."""


def _square(xlabel: str, ylabel: str) -> tuple["Figure", "Axes"]:
    figure, axes = _figure(4.6, 4.6)
    axes.set(xlabel=xlabel, ylabel=ylabel, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.set_aspect("equal")
    axes.grid(color="#e5e9ee", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _figure(width_in: float, height_in: float) -> tuple["Figure", "Axes"]:
    figure, axes = _new_figure(width_in, height_in, 1, 1)
    return figure, axes[0]


def _new_figure(width_in: float, height_in: float, rows: int, columns: int) -> tuple["Figure", list["Axes"]]:
    """Return a figure that no window shows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _legend_below(figure: "Figure", title: str) -> None:
    """Put the legend where no curve runs through it."""
    figure.legend(loc="outside lower center", ncols=2, title=title, title_fontsize=8, fontsize=7.5)


def _draw_matrix(axes: "Axes", one: Series, classes: Sequence[str]) -> None:
    counts = _counts(one)
    table = np.array([[counts.tn, counts.fp], [counts.fn, counts.tp]])
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.25)
    for (row, column), count in np.ndenumerate(table):
        text = f"{count}\n{shares[row, column]:.1%}"
        colour = "white" if shares[row, column] > 0.62 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=10)
    axes.set(title=one.name, xlabel="called", ylabel="truth")
    axes.set_xticks([0, 1], classes)
    axes.set_yticks([0, 1], classes, rotation=90, va="center")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _counts(one: Series) -> Counts:
    return Counts.of(one.labels, (one.probabilities >= one.threshold).astype(np.int64))


def _colours(series: Sequence[Series]) -> list[str]:
    return [COLOURS[place % len(COLOURS)] for place in range(len(series))]
