"""Whether a file's metadata alone predict its label: then a network may learn the scanner in place of the finding."""

import collections
import dataclasses
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from trainer.file_facts import Facts
from trainer.roc import Auc, auc_delong
from trainer.video import Video

NUM_FOLDS, NUM_TREES, MIN_LEAF = 5, 60, 3
NUM_REPEATS = 3
"""Other folds each time; the scores are averaged, as one draw of folds is luck."""


@dataclasses.dataclass(frozen=True, slots=True)
class Confounding:
    """How well metadata predict the positive class, in patients that the predictor has not seen."""

    auc: Auc
    """Of all facts together, a patient (and label) counted once."""
    auc_by_fact: dict[str, float]
    """Of each fact alone, the most telling first."""

    @property
    def is_suspicious(self) -> bool:
        """The area is above a half beyond chance."""
        return self.auc.ci[0] > 0.5


def find_confounding(videos: Sequence[Video], facts: Sequence[Facts], positive: int) -> Confounding | None:
    """Predict the label from metadata by random forests, cross-validated with whole patients.

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
    auc = _patient_auc(_scores(table, labels, patients, num_folds), labels, patients)
    alone = {
        name: _patient_auc(_scores(table[:, [place]], labels, patients, num_folds), labels, patients).value
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


def _scores(
    table: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], patients: npt.NDArray[np.str_], num_folds: int
) -> npt.NDArray[np.float64]:
    """Return each video's probability from forests that have not seen its patient, (videos,)."""
    scores = np.zeros(len(labels))
    for seed in range(NUM_REPEATS):
        splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            splits = list(splitter.split(table, labels, patients))
        for train, test in splits:
            if len(set(labels[train])) == 2:
                forest = RandomForestClassifier(
                    NUM_TREES, min_samples_leaf=MIN_LEAF, class_weight="balanced", random_state=seed
                )
                scores[test] += forest.fit(table[train], labels[train]).predict_proba(table[test])[:, 1]
            else:
                scores[test] += labels[train][0]
    return scores / NUM_REPEATS


def _patient_auc(scores: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], patients: npt.NDArray[np.str_]) -> Auc:
    """Return the area over patients, each the mean of its videos: videos of one patient are no independent proof."""
    members = collections.defaultdict(list)
    for place, key in enumerate(zip(patients, labels, strict=True)):
        members[key].append(place)
    own_labels = np.array([label for _, label in members])
    return auc_delong(own_labels, np.array([scores[places].mean() for places in members.values()]))
