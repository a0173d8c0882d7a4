"""Whether a file's metadata alone predict its label: then a network may learn the scanner in place of the finding."""

import collections
import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.tree import DecisionTreeClassifier

from trainer.checks.file_facts import Facts
from trainer.data.video import Video
from trainer.evaluation.roc import Auc, auc_delong

Labels = npt.NDArray[np.int64]
Split = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]

NUM_FOLDS, NUM_TREES, MAX_DEPTH, MIN_LEAF = 5, 60, 3, 3
NUM_REPEATS = 3
"""Other folds each time; the scores are averaged, as one draw of folds is luck."""


@dataclasses.dataclass(frozen=True, slots=True)
class Confounding:
    """How well metadata predict the positive class, in patients that the predictor has not seen."""

    auc: Auc
    """Of all facts together, a patient (and label) counted once."""
    auc_by_fact: dict[str, float]
    """Of each fact alone, by a small tree, the most telling first."""

    @property
    def is_suspicious(self) -> bool:
        """The area is above a half beyond chance."""
        return self.auc.ci[0] > 0.5


def find_confounding(videos: Sequence[Video], facts: Sequence[Facts], positive: int) -> Confounding | None:
    """Predict the label from metadata by a random forest, cross-validated with whole patients.

    Args:
        videos: At least one patient with and without the positive class.
        facts: Of each video.
        positive: The label to predict, against all others.

    Returns:
        The areas; None where no fact differs, or where there are too few patients to say.
    """
    names, table = _table(facts)
    labels = np.array([int(video.label == positive) for video in videos])
    patients = np.array([video.patient_id for video in videos])
    num_folds = min([NUM_FOLDS, *(len(set(patients[labels == label])) for label in (0, 1))])
    if not names or num_folds < 2:
        return None
    splits = _splits(labels, patients, num_folds)
    auc = _patient_auc(_scores(_forest, table, labels, splits), labels, patients)
    alone = {
        name: _patient_auc(_scores(_tree, table[:, [place]], labels, splits), labels, patients).value
        for place, name in enumerate(names)
    }
    return Confounding(auc, dict(sorted(alone.items(), key=lambda item: -item[1])))


def _table(facts: Sequence[Facts]) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return the facts that differ, and (videos, facts) numbers; words are numbered, a missing one is -1."""
    columns = {}
    for name in dict.fromkeys(name for one in facts for name in one):
        values = [one.get(name) for one in facts]
        words = sorted({value for value in values if isinstance(value, str)})
        numbers = [words.index(value) if isinstance(value, str) else -1 if value is None else value for value in values]
        if len(set(numbers)) > 1:
            columns[name] = numbers
    return list(columns), np.array(list(columns.values()), np.float64).T


def _splits(labels: Labels, patients: npt.NDArray[np.str_], num_folds: int) -> list[Split]:
    """Return places to train and test on: `NUM_REPEATS` draws of folds of whole patients."""
    splits: list[Split] = []
    for seed in range(NUM_REPEATS):
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            # folds without a class are left out below
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            splits += splitter.split(labels, labels, patients)
    return [(train, test) for train, test in splits if len(set(labels[train])) == 2]


def _forest() -> ClassifierMixin:
    return RandomForestClassifier(NUM_TREES, min_samples_leaf=MIN_LEAF, class_weight="balanced", random_state=0)


def _tree() -> ClassifierMixin:
    return DecisionTreeClassifier(
        max_depth=MAX_DEPTH, min_samples_leaf=MIN_LEAF, class_weight="balanced", random_state=0
    )


def _scores(
    make: Callable[[], ClassifierMixin], table: npt.NDArray[np.float64], labels: Labels, splits: Sequence[Split]
) -> npt.NDArray[np.float64]:
    """Return each video's mean probability from classifiers that have not seen its patient, (videos,)."""
    sums, counts = np.zeros(len(labels)), np.zeros(len(labels))
    for train, test in splits:
        sums[test] += make().fit(table[train], labels[train]).predict_proba(table[test])[:, 1]
        counts[test] += 1
    return sums / np.maximum(counts, 1)


def _patient_auc(scores: npt.NDArray[np.float64], labels: Labels, patients: npt.NDArray[np.str_]) -> Auc:
    """Return the area over patients, each the mean of its videos: videos of one patient are no independent proof."""
    members = collections.defaultdict(list)
    for place, key in enumerate(zip(patients, labels, strict=True)):
        members[key].append(place)
    own_labels = np.array([label for _, label in members])
    return auc_delong(own_labels, np.array([scores[places].mean() for places in members.values()]))
