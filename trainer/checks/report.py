"""Prints what `edge-train check` found."""

import collections
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from trainer.checks.confounders import Confounding
from trainer.checks.findings import Report
from trainer.checks.near_duplicates import NearDuplicate
from trainer.data.manifest import Manifest
from trainer.data.video import SPLITS, Video


def print_report(manifest: Manifest, report: Report) -> None:
    """Print counts, then one line a finding, those that matter as `warning: ...`, then the verdict."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(balance_table(manifest, report.usable))
    console.print(_confounding_line(report.confounding))
    warnings = list(warnings_of(manifest, report))
    for line in warnings:
        console.print(f"warning: {line}", markup=False)
    number = f"{len(warnings)} warning{'s' * (len(warnings) != 1)}" if warnings else "nothing to warn of"
    usable = f"{len(report.usable)} of {len(manifest.videos)} videos are usable"
    console.print(f"{manifest.path}: no patient leaks; {usable}; {number}", markup=False)


def balance_table(manifest: Manifest, videos: Sequence[Video]) -> Table:
    """Return how many videos of each class there are, by split, fold and site, and of how many patients."""
    table = Table("", "videos", "patients", *manifest.classes, title="usable videos", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for name, members in _parts(videos):
        labels = collections.Counter(video.label for video in members)
        shares = [_share(labels[label], len(members)) for label in range(len(manifest.classes))]
        table.add_row(name, str(len(members)), str(len({video.patient_id for video in members})), *shares)
    return table


def warnings_of(manifest: Manifest, report: Report) -> Iterator[str]:
    """Yield one line for each finding that may spoil a training."""
    for id, reason in report.prepared.unreadable.items():
        yield f"unreadable, left out: {id}: {reason}"
    for id, reason in report.prepared.short.items():
        yield f"too short, left out: {id}: {reason}"
    for id, reason in report.damaged.items():
        yield f"{id}: {reason}"
    for duplicate in report.duplicates:
        yield _duplicate_line(manifest, duplicate)
    yield from report.remarks
    if report.confounding is not None and report.confounding.is_suspicious:
        yield _confounder_warning(report.confounding)


def _parts(videos: Sequence[Video]) -> Iterator[tuple[str, list[Video]]]:
    yield "all", list(videos)
    columns: dict[str, Callable[[Video], str | int | None]] = {
        "split": lambda video: video.split,
        "fold": lambda video: None if video.split == "test" else video.fold,
        "site": lambda video: video.site,
    }
    for column, value_of in columns.items():
        values = {value_of(video) for video in videos} - {None}
        for value in sorted(values, key=lambda value: SPLITS.index(value) if column == "split" else value):
            yield f"{column} {value}", [video for video in videos if value_of(video) == value]


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})"


def _duplicate_line(manifest: Manifest, duplicate: NearDuplicate) -> str:
    first, second = duplicate.first, duplicate.second
    labels = ""
    if first.label != second.label:
        labels = f"; their labels differ: {manifest.classes[first.label]}, {manifest.classes[second.label]}"
    return (
        f"near-duplicates {_across(first, second)}: {first.id} (patient {first.patient_id}) and {second.id} (patient "
        f"{second.patient_id}), similarity {duplicate.similarity:.2f}{labels}"
    )


def _across(first: Video, second: Video) -> str:
    if first.split != second.split:
        return f"across splits, {first.split} and {second.split}"
    if first.split != "test" and first.fold != second.fold:
        return f"across folds, {first.fold} and {second.fold}"
    return "of two patients" if first.patient_id != second.patient_id else "of one patient, who counts twice"


def _confounding_line(confounding: Confounding | None) -> str:
    if confounding is None:
        return "file metadata: they do not differ, or patients are too few to say what they predict"
    low, high = confounding.auc.ci
    facts = ", ".join(f"{name} {auc:.2f}" for name, auc in confounding.auc_by_fact.items())
    return (
        f"file metadata alone predict the positive class in unseen patients with AUC {confounding.auc.value:.2f} "
        f"(95 % CI {low:.2f} to {high:.2f}); each alone: {facts}"
    )


def _confounder_warning(confounding: Confounding) -> str:
    fact = next(iter(confounding.auc_by_fact))
    return (
        f"confounder: file metadata alone predict the label (AUC {confounding.auc.value:.2f}, {fact!r} the most): a "
        "network may learn the scanner or the export in place of the finding"
    )
