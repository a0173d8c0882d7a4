"""What a report's page shows, part by part: pictures as text, tables, facts; each also a file beside the page."""

import base64
import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.evaluation import plots
from trainer.evaluation.evaluate import reader_points, series_of
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.predictions import write_table
from trainer.evaluation.summary import told_reasons
from trainer.files import write_atomic
from trainer.inference.cases import KINDS
from trainer.report import tables as report_tables
from trainer.report.entries import Entry, TrainingRecord
from trainer.report.facts import Fact, facts_of_training
from trainer.report.tables import ReportTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """A picture as the page holds it."""

    caption: str
    data_uri: str
    is_wide: bool = False
    max_width_px: int = 1100


@dataclasses.dataclass(frozen=True, slots=True)
class CasePicture:
    """One right or wrong case."""

    kind: str
    caption: str
    data_uri: str


@dataclasses.dataclass(frozen=True, slots=True)
class Section:
    """All about one set of videos."""

    letter: str
    title: str
    facts: tuple[Fact, ...]
    tables: tuple[tuple[str, ReportTable], ...]
    """With the number that the page gives each."""
    pictures: tuple[Picture, ...]
    readers: tuple[tuple[str, ReportTable], ...]
    details: tuple[ReportTable, ...]
    """Shown on demand."""
    cases: tuple[tuple[str, tuple[CasePicture, ...]], ...]
    """By network."""
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingSection:
    """How one network was trained."""

    name: str
    facts: tuple[Fact, ...]
    recipe: tuple[Fact, ...]
    picture: Picture | None


class Writer:
    """Writes pictures and tables beside the page, and hands the pictures back for the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def picture(
        self, name: str, figure: "Figure", caption: str, *, is_wide: bool = False, max_width_px: int = 1100
    ) -> Picture:
        path = self.folder / f"{name}.png"
        plots.save_png(figure, path)
        return Picture(caption, data_uri(path), is_wide, max_width_px)

    def table(self, name: str, table: ReportTable) -> None:
        write_table(self.folder / f"{name}.csv", table.columns, table.rows)

    def copy(self, name: str, source: Path) -> str:
        path = self.folder / f"{name}.png"
        write_atomic(path, source.read_bytes())
        return data_uri(path)


def data_uri(path: Path) -> str:
    """Return a PNG as text that an HTML page can hold."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def section_of(group: Sequence[Entry], letter: str, writer: Writer) -> Section:
    first = group[0]
    demographics = report_tables.demographics(first.predictions)
    tables = [(f"Table 1{letter}", demographics)] if demographics else []
    tables.append((f"Table 2{letter}", report_tables.networks(group)))
    tables += [
        (f"Table 2{letter}, by {level}", table)
        for level in ("video", "patient")
        if (table := report_tables.intervals(group, level))
    ]
    readers = [(f"Table 3{letter}", table) for entry in group if (table := report_tables.readers(entry))]
    details = [table for entry in group if (table := report_tables.subgroups(entry))]
    for name, table in [*tables, *readers, *((f"subgroups {letter}", table) for table in details)]:
        writer.table(_slug(f"{name} {table.caption}"), table)
    return Section(
        letter=letter,
        title=f"Videos {letter}",
        facts=_facts_of_videos(first),
        tables=tuple(tables),
        pictures=_pictures(group, letter, writer),
        readers=tuple(readers),
        details=tuple(details),
        cases=tuple((entry.name, found) for entry in group if (found := _cases(entry, letter, writer))),
        notes=_notes(group),
    )


def _pictures(group: Sequence[Entry], letter: str, writer: Writer) -> tuple[Picture, ...]:
    series = [series_of(entry.name, entry.predictions, entry.metrics["threshold"]) for entry in group]
    readers = {reader["reader"]: reader for entry in group for reader in entry.metrics.get("readers") or []}
    prefix = letter.lower()
    return (
        writer.picture(
            f"{prefix}-roc",
            plots.draw_roc(series, reader_points(list(readers.values()))),
            "ROC curves. Dots: the operating points.",
        ),
        writer.picture(
            f"{prefix}-pr", plots.draw_precision_recall(series), "Precision and recall. Dashed: the share of positives."
        ),
        writer.picture(
            f"{prefix}-calibration",
            plots.draw_calibration(series),
            "Calibration in ten bins; a dot's area tells its share of the videos.",
        ),
        writer.picture(
            f"{prefix}-decision",
            plots.draw_decision(series),
            "Decision curves: net benefit, in true positives a video, of acting on the network.",
        ),
        writer.picture(
            f"{prefix}-confusion",
            plots.draw_confusion(series),
            "Confusion matrices: videos, and their share of the row.",
            is_wide=True,
            max_width_px=280 * min(len(series), 3),
        ),
    )


def _cases(entry: Entry, letter: str, writer: Writer) -> tuple[CasePicture, ...]:
    found = []
    for case in entry.metrics.get("cases") or []:
        path = entry.folder / case["picture"]
        if path.is_file():
            name = _slug(f"{letter} {entry.name} {Path(case['picture']).stem}")
            caption = f"{case['id']}: {case['probability']:.3f}, {evidence_text(case)}"
            found.append(CasePicture(KINDS[case["kind"]], caption, writer.copy(f"case-{name}", path)))
    return tuple(found)


def evidence_text(case: Metrics) -> str:
    """Return which frame a case's picture shows, and where its evidence lies."""
    if not case["peak"]:  # the map is 0 everywhere: its first cell is no place
        return f"frame {case['keyframe']}, no evidence for the positive class"
    places = {None: "", 0: ", peak outside the mask", 1: ", peak inside the mask"}
    return f"frame {case['keyframe']}{places[case.get('is_inside_mask')]}"


def _facts_of_videos(entry: Entry) -> tuple[Fact, ...]:
    metrics, data = entry.metrics, entry.metrics["data"]
    num_positive = metrics["counts"]["tp"] + metrics["counts"]["fn"]
    facts = [
        Fact("videos", str(metrics["n"])),
        Fact("patients", str(metrics.get("num_patients") or "not told")),
        Fact("positive", f"{num_positive} ({num_positive / metrics['n']:.1%})"),
        Fact("which", str(data.get("selection", "not told"))),
        Fact("from", f"{data.get('name', 'not told')}, SHA-256 {str(data.get('sha256') or 'not told')[:16]}"),
    ]
    if data.get("left_out"):
        facts.append(Fact("left out", f"{len(data['left_out'])}: {', '.join(list(data['left_out'])[:3])}"))
    return tuple(facts)


def _notes(group: Sequence[Entry]) -> tuple[str, ...]:
    notes = []
    for entry in group:
        metrics: Metrics = entry.metrics
        notes += [f"{entry.name}: {name}: {reason}." for name, reason in told_reasons(metrics).items()]
        if metrics.get("patient_level_reason") and metrics.get("num_patients") != metrics["n"]:
            notes.append(f"{entry.name}: no figures by patient: {metrics['patient_level_reason']}.")
        if hits := metrics.get("heatmap"):
            notes.append(
                f"{entry.name}: the heatmap's peak lies on the mask in {hits['keyframe_hit_rate']:.1%} of "
                f"{hits['num_videos']} positive videos' keyframes and in {hits['window_hit_rate']:.1%} of their "
                f"{hits['num_windows']} windows; the mask covers {hits['mask_share']:.1%} of the image."
            )
        patients = metrics.get("num_patients")
        if patients and patients < metrics["n"]:
            notes.append(
                f"{entry.name}: videos of one patient are alike, so intervals by video are too narrow: "
                f"{metrics['n']} videos, {patients} patients."
            )
    return tuple(notes)


def between_of(groups: Sequence[Sequence[Entry]], letters: Sequence[str], writer: Writer) -> ReportTable | None:
    table = report_tables.between_datasets(groups, letters)
    if table is not None:
        writer.table("between-the-sets", table)
    return table


def training_of(training: TrainingRecord, writer: Writer) -> TrainingSection:
    history, picture = training.history, None
    if history:
        epochs = history.get("epoch") or list(range(1, len(next(iter(history.values()))) + 1))
        parts = {"training": "train", "validation": "val"}
        losses = {part: history[f"{key}_loss"] for part, key in parts.items() if f"{key}_loss" in history}
        accuracies = {part: history[f"{key}_accuracy"] for part, key in parts.items() if f"{key}_accuracy" in history}
        figure = plots.draw_history(training.name, epochs, losses, accuracies)
        name = _slug(f"training {training.name}")
        write_table(writer.folder / f"{name}.csv", list(history), zip(*history.values(), strict=True))
        picture = writer.picture(
            name,
            figure,
            "Loss and accuracy an epoch: of training by clip, of validation by video.",
            is_wide=True,
            max_width_px=820,
        )
    facts, recipe = facts_of_training(training.about)
    return TrainingSection(training.name, facts, recipe, picture)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
