"""Human readers against the network on the videos that each of them read."""

import dataclasses

import numpy as np

from trainer.evaluation import roc
from trainer.evaluation.metrics import Metrics, as_record, explained, measure, measure_calls, measure_scores
from trainer.evaluation.predictions import Predictions, Reader
from trainer.evaluation.statistics import Labels, TestResult, mcnemar_test

_ONLY_OF_PROBABILITIES = ("brier", "ece", "threshold")


def measure_readers(predictions: Predictions, readers: list[Reader], threshold: float, interval: str) -> list[Metrics]:
    """Return each reader's figures with the tests against the network on the same videos.

    A reader without scores has the AUC of the calls, (sensitivity + specificity) / 2, said under `auc_of`: the
    comparison with a network's AUC, which may choose its threshold afterwards, is then unfair to the reader.
    """
    return [_measure_reader(predictions, reader, threshold, interval) for reader in readers]


def _measure_reader(predictions: Predictions, reader: Reader, threshold: float, interval: str) -> Metrics:
    read = predictions.at(reader.places)
    labels, probabilities, cut = read.labels, read.probabilities, read.cut(threshold)
    scores = reader.calls.astype(np.float64) if reader.scores is None else reader.scores
    values = measure_calls(labels, reader.calls, interval)
    values.update(measure_scores(labels, scores))
    network_calls = (probabilities >= cut).astype(np.int64)
    own = explained(values)
    own["reasons"].update(dict.fromkeys(_ONLY_OF_PROBABILITIES, "a reader gives calls, not probabilities"))
    return {
        "reader": reader.name,
        **own,
        **dict.fromkeys(_ONLY_OF_PROBABILITIES),
        "auc_of": "call" if reader.scores is None else "score",
        "mcnemar": as_record(mcnemar_test(labels, reader.calls, network_calls)),
        "mcnemar_sensitivity": as_record(_mcnemar_of(1, labels, reader.calls, network_calls)),
        "mcnemar_specificity": as_record(_mcnemar_of(0, labels, reader.calls, network_calls)),
        "delong": as_record(roc.compare_paired(labels, scores, probabilities)),
        "agreement_kappa": explained(_agreement(network_calls, reader.calls)),
        "network": measure(labels, probabilities, cut, interval),
    }


def _mcnemar_of(label: int, labels: Labels, first: Labels, second: Labels) -> TestResult:
    chosen = labels == label
    result = mcnemar_test(labels[chosen], first[chosen], second[chosen])
    return dataclasses.replace(result, method=f"{result.method}, label {label}")


def _agreement(network_calls: Labels, calls: Labels) -> Metrics:
    values = measure_calls(network_calls, calls)
    return {name: values[name] for name in ("kappa", "kappa_se")}
