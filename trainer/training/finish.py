"""The end of a training: what the chosen weights say of the validation videos, and what is chosen from it."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from edge.commandline import print_line
from trainer.data.clips import VideoFrames
from trainer.data.video import Video
from trainer.evaluation.aggregate import aggregate_logits, probabilities_of
from trainer.evaluation.calibration import choose_threshold, fit_temperature
from trainer.evaluation.metrics import measure
from trainer.evaluation.predictions import Predictions, write_predictions
from trainer.inference.predict import window_logits
from trainer.runs import PREDICTIONS_NAME, Run

Decoded = tuple[Video, VideoFrames]


def calibrated(run: Run, validation: Sequence[Decoded]) -> Run:
    """Return the run with temperature, threshold and metrics from the validation videos; write predictions.csv.

    Args:
        run: Its best weights are in place.
        validation: Videos of both classes.
    """
    logits = video_logits(run, validation)
    labels = np.array([video.label for video, _ in validation])
    temperature = fit_temperature(logits, labels)
    probabilities = probabilities_of(logits / temperature)[:, -1]
    positive = (labels == len(run.classes) - 1).astype(np.int64)
    threshold = choose_threshold(positive, probabilities, run.threshold_rule)
    if len(set(probabilities >= threshold)) == 1:
        print_line("warning", f"the threshold {threshold:.3f} calls all validation videos alike: it separates nothing")
    write_predictions(run.path / PREDICTIONS_NAME, _predictions(run, validation, positive, probabilities))
    return dataclasses.replace(
        run, temperature=temperature, threshold=threshold, validation=measure(positive, probabilities, threshold)
    )


def video_logits(run: Run, videos: Sequence[Decoded]) -> np.ndarray:
    """Return one row of logits a video, (videos, K) float64: the mean over all of its windows at hop 1."""
    network = run.network().to("cuda" if torch.cuda.is_available() else "cpu")
    console = Console(stderr=True)
    watched = track(videos, "validating whole videos", console=console, transient=True, disable=not console.is_terminal)
    rows = [window_logits(network, decoded) for _, decoded in watched]
    return np.stack([aggregate_logits(row) for row in rows])


def _predictions(run: Run, videos: Sequence[Decoded], positive: np.ndarray, probabilities: np.ndarray) -> Predictions:
    listed = [video for video, _ in videos]
    names = dict.fromkeys(name for video in listed for name in video.covariates)
    sites = {"site": tuple(video.site or "" for video in listed)} if any(video.site for video in listed) else {}
    return Predictions(
        ids=tuple(video.id for video in listed),
        labels=positive,
        probabilities=probabilities,
        patient_ids=tuple(video.patient_id for video in listed),
        folds=None if run.fold is None else (str(run.fold),) * len(listed),
        covariates={**sites, **{name: tuple(video.covariates.get(name, "") for video in listed) for name in names}},
    )
