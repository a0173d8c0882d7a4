"""The report's tables, as text for people; their CSV twins hold the same text."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from trainer.evaluation import roc
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.predictions import Predictions
from trainer.evaluation.summary import (
    NOTHING,
    PROPORTIONS,
    interval,
    number,
    p_value,
    percent,
    percent_with_interval,
    with_error,
)
from trainer.evaluation.table_one import VIDEOS, TableOne, table_one
from trainer.report.entries import Entry


@dataclasses.dataclass(frozen=True, slots=True)
class ReportTable:
    """A table with its caption and the note below it."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


_RATES = ("ACC %", "SEN %", "SPE %", "PPV %", "NPV %", "F1", "Kappa ± SE", "AUC (95 % CI)")


def demographics(predictions: Predictions) -> ReportTable | None:
    """Return Table 1: patients by class, with tests; None where there is no covariate."""
    table = table_one(predictions)
    if not table.rows:
        return None
    columns = ("", "", *(_group(table, name) for name in ("all", "negative", "positive")), "missing", "test", "p")
    text = [
        (
            _name(table, row) if row["test"] else "",
            row["level"],
            row["all"],
            row["negative"],
            row["positive"],
            str(row["missing"]),
            row["test"],
            p_value(row["p_value"]) if row["test"] else "",
        )
        for row in table.rows
    ]
    return ReportTable(f"The {table.unit} by class, counted by {table.unit[:-1]}", columns, tuple(text), _note(table))


def _group(table: TableOne, name: str) -> str:
    return f"{name} (n = {table.sizes[table.unit][name]})"


def _name(table: TableOne, row: Metrics) -> str:
    return str(row["covariate"]) if row["unit"] == table.unit else f"{row['covariate']} (by {row['unit'][:-1]})"


def _note(table: TableOne) -> str:
    note = (
        f"Counted by {table.unit[:-1]}. Numbers: median (quartiles), Mann-Whitney U test. Levels: count (share), "
        "chi-square test, or Fisher's exact test where an expected count is below 5 (Freeman and Halton's form, by "
        "random tables, where there are more than two levels). Two-sided; not corrected for the number of tests."
    )
    if table.by_video:
        sizes = table.sizes[VIDEOS]
        note += (
            f" Not the same in all videos of a patient, so counted by video ({sizes['negative']} negative, "
            f"{sizes['positive']} positive), which the tests take for independent: {', '.join(table.by_video)}."
        )
    if table.num_of_both_classes:
        note += f" {table.num_of_both_classes} patients with videos of both classes are counted as positive."
    return note


def networks(entries: Sequence[Entry]) -> ReportTable:
    """Return Table 2: every network on the same videos; DeLong's test against the first."""
    rows = [
        (
            _label(entry),
            *_counts(entry.metrics),
            *_rates(entry.metrics),
            NOTHING if entry is entries[0] else p_value(_against(entries[0], entry)),
        )
        for entry in entries
    ]
    thresholds = ", ".join(f"{entry.name} {_threshold(entry)}" for entry in entries)
    note = (
        "TP/P: right among the positive; TN/N: right among the negative. SE of kappa after Fleiss, Cohen and Everitt "
        f"1969. AUC with DeLong's interval; p: DeLong's paired test of the AUC against {entries[0].name}. "
        f"Thresholds: {thresholds}."
    )
    return ReportTable("Networks", ("Network", "TP/P", "TN/N", *_RATES, "p"), tuple(rows), note)


def _threshold(entry: Entry) -> str:
    cuts = entry.predictions.thresholds
    if cuts is None:
        return f"{entry.metrics['threshold']:.4g}"
    return f"{cuts.min():.4g} to {cuts.max():.4g}, by fold: each chosen on the other folds' videos"


def _label(entry: Entry) -> str:
    network = entry.metrics["model"].get("network")
    return f"{entry.name} [{network}]" if network and network not in entry.name else entry.name


def _against(first: Entry, other: Entry) -> float | None:
    places = {id_: place for place, id_ in enumerate(other.predictions.ids)}
    order = [places[id_] for id_ in first.predictions.ids]
    test = roc.compare_paired(
        first.predictions.labels, first.predictions.probabilities, other.predictions.probabilities[order]
    )
    return test.p_value if np.isfinite(test.p_value) else None


def intervals(entries: Sequence[Entry], level: str) -> ReportTable | None:
    """Return every proportion with its interval, by "video" or by "patient"; None where no entry has them."""
    chosen = [
        (entry, values) for entry in entries if (values := entry.metrics if level == "video" else _patients(entry))
    ]
    if not chosen:
        return None
    rows = [
        (
            entry.name,
            str(values["n"]),
            *(percent_with_interval(values, name) for name in PROPORTIONS),
            *((_auc(values),) if level == "patient" else ()),
            number(values["average_precision"]),
            number(values["brier"]),
            number(values["ece"]),
        )
        for entry, values in chosen
    ]
    auc = ("AUC (95 % CI)",) if level == "patient" else ()
    kinds = sorted({entry.metrics["interval"] for entry, _ in chosen})
    note = f"95 % intervals of proportions: {', '.join(kinds)}. AP: average precision; ECE: ten bins of equal width."
    if level == "patient":
        note += " A patient's probability comes from the mean of the videos' logits."
    columns = ("Network", "n", *_RATES[:5], *auc, "AP", "Brier", "ECE")
    return ReportTable(f"Intervals and calibration, by {level}", columns, tuple(rows), note)


def _patients(entry: Entry) -> Metrics | None:
    return entry.metrics.get("patient_level")


def readers(entry: Entry) -> ReportTable | None:
    """Return Table 3: human readers against a network; None where there are none."""
    found: list[Metrics] = entry.metrics.get("readers") or []
    if not found:
        return None
    rows = [
        (
            f"Reader {reader['reader']}",
            *_counts(reader),
            *_rates(reader),
            p_value(reader["mcnemar"]["p_value"]),
            p_value(reader["delong"]["p_value"]),
        )
        for reader in found
    ]
    rows.append((entry.name, *_counts(entry.metrics), *_rates(entry.metrics), "", ""))
    note = (
        f"McNemar: exact test of the reader's share of right calls against that of {entry.name} at its threshold; "
        "DeLong: paired test of the AUCs; both on the videos that the reader read."
    )
    if any(reader["auc_of"] == "call" for reader in found):
        note += (
            " Readers who gave calls without scores have the AUC of the calls, (SEN + SPE) / 2: one point against a "
            "whole curve, which favours the network."
        )
    columns = ("", "TP/P", "TN/N", *_RATES, "p McNemar", "p DeLong")
    return ReportTable(f"Readers against {entry.name}", columns, tuple(rows), note)


def subgroups(entry: Entry) -> ReportTable | None:
    """Return a network's figures by covariate; None where there is none."""
    found: list[Metrics] = entry.metrics.get("subgroups") or []
    if not found:
        return None
    rows, last = [], None
    for group in found:
        name = "" if group["covariate"] == last else group["covariate"]
        last = group["covariate"]
        rows.append((name, group["level"], str(group["n"]), *_counts(group), *_rates(group)))
    note = "Subgroups are small: read the intervals. A dash stands where a group has too few videos of a class."
    return ReportTable(f"Subgroups, {entry.name}", ("", "", "n", "TP/P", "TN/N", *_RATES), tuple(rows), note)


def between_datasets(groups: Sequence[Sequence[Entry]], letters: Sequence[str]) -> ReportTable | None:
    """Return the same network on two sets of videos; None where no network was measured on two."""
    rows = []
    for first in groups[0] if groups else ():
        for letter, others in zip(letters[1:], groups[1:], strict=True):
            for other in others:
                if other.name == first.name:
                    test = roc.compare_unpaired(
                        first.predictions.labels,
                        first.predictions.probabilities,
                        other.predictions.labels,
                        other.predictions.probabilities,
                    )
                    p = p_value(test.p_value if np.isfinite(test.p_value) else None)
                    rows.append((first.name, f"A, {letter}", number(test.auc[0]), number(test.auc[1]), p))
    if not rows:
        return None
    note = "DeLong's test for independent sets, with Welch's degrees of freedom."
    return ReportTable(
        "The same network on two sets of videos", ("Network", "sets", "first AUC", "second AUC", "p"), tuple(rows), note
    )


def _counts(values: Metrics) -> tuple[str, str]:
    counts = values["counts"]
    return f"{counts['tp']}/{counts['tp'] + counts['fn']}", f"{counts['tn']}/{counts['tn'] + counts['fp']}"


def _rates(values: Metrics) -> tuple[str, ...]:
    return (
        *(percent(values[name]) for name in PROPORTIONS),
        number(values["f1"], 4),
        with_error(values["kappa"], values["kappa_se"]),
        _auc(values),
    )


def _auc(values: Metrics) -> str:
    return NOTHING if values["auc"] is None else f"{number(values['auc'])} ({interval(values['auc_ci'])})"
