"""Measures a run or a bundle on a manifest's videos: every window of every video, as the daemon would play it."""

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from edge.commandline import print_line
from edge.errors import ConfigError
from trainer.data.clips import ClipStore, VideoFrames, default_cache_dir
from trainer.data.manifest import Manifest, read_manifest
from trainer.data.video import Video
from trainer.evaluation.evaluate import Setup, evaluate, write_records
from trainer.evaluation.folder import (
    KEYFRAMES_NAME,
    TRAINING_NAME,
    WINDOWS_NAME,
    check_folder,
    make_folder,
    new_evaluation,
)
from trainer.evaluation.metrics import Metrics
from trainer.evaluation.predictions import Predictions, Reader, read_readers, write_table
from trainer.evaluation.summary import print_summary
from trainer.files import write_atomic
from trainer.inference.cases import write_cases
from trainer.inference.evidence import Masks, check_masks, mask_path, read_masks, summarise_hits
from trainer.inference.predictors import Card, Predictor, open_predictor
from trainer.inference.selection import Selection, select_videos
from trainer.inference.video_results import WINDOW_COLUMNS, VideoResult, keyframe_records, predict_video, window_rows

_NUM_NAMED = 3


def evaluate_videos(options: argparse.Namespace) -> int:
    """Run `edge-train evaluate BUNDLE|RUN MANIFEST`."""
    inputs = (options.manifest, options.readers)
    check_folder(options.out, inputs)
    with contextlib.closing(open_predictor(options.model, options.backend, options.device)) as predictor:
        card = predictor.card
        manifest = read_manifest(options.manifest, card.classes)
        store = _open_store(card, options.cache)
        selection = select_videos(manifest, card, options.split, store.content)
        _check_classes(selection, card, manifest.path)
        make_folder(options.out)
        videos, left_out = _usable(store, selection)
        _check_classes(Selection(videos, selection.description), card, manifest.path)
        readers = read_readers(options.readers, [video.id for video in videos]) if options.readers else []
        for video in videos:
            if (path := mask_path(video, manifest.path)) is not None:
                check_masks(path, store.get(video))
        results = predict_all(predictor, store, videos, options.aggregate, manifest)
    data = {**_data_of(manifest, selection), "left_out": left_out}
    with new_evaluation(options.out, inputs) as folder:
        metrics = _write(folder, options, card, manifest, results, readers, data)
    print_summary(metrics, options.out)
    return 0


def predict_all(
    predictor: Predictor, store: ClipStore, videos: Sequence[Video], aggregate: str, manifest: Manifest
) -> list[VideoResult]:
    """Run every window of every video, with progress."""

    def masks_of(video: Video, frames: VideoFrames) -> Masks | None:
        path = mask_path(video, manifest.path)
        return None if path is None else read_masks(path, frames)

    console = Console(stderr=True)
    shown = track(videos, "predicting", console=console, transient=True, disable=not console.is_terminal)
    return [predict_video(predictor, video, store.get(video), aggregate, masks_of) for video in shown]


def _write(
    out: Path,
    options: argparse.Namespace,
    card: Card,
    manifest: Manifest,
    results: list[VideoResult],
    readers: Sequence[Reader],
    data: Metrics,
) -> Metrics:
    predictions = predictions_of(results, manifest)
    setup = Setup(
        name=card.name,
        threshold=card.threshold,
        interval=options.interval,
        model={**card.about, "classes": card.classes},
        data={**data, "num_windows": sum(len(result.window_probabilities) for result in results)},
    )
    positive_label = len(manifest.classes) - 1
    hits = [result.hits for result in results if result.hits is not None and result.video.label == positive_label]
    write_table(out / WINDOWS_NAME, WINDOW_COLUMNS, window_rows(results))
    write_records(out / KEYFRAMES_NAME, keyframe_records(results))
    if card.history is not None and card.history.is_file():
        write_atomic(out / TRAINING_NAME, card.history.read_bytes())
    more = {
        "aggregate": options.aggregate,
        "heatmap": summarise_hits(hits),
        "cases": write_cases(out, results, positive_label, card.threshold),
    }
    return evaluate(predictions, setup, out, readers, more)


def predictions_of(results: Sequence[VideoResult], manifest: Manifest) -> Predictions:
    """Return the table of predictions; the manifest's covariates and sites go with it."""
    videos = [result.video for result in results]
    covariates = {name: tuple(video.covariates.get(name, "") for video in videos) for name in manifest.covariate_names}
    if any(video.site for video in videos):
        covariates["site"] = tuple(video.site or "" for video in videos)
    positive_label = len(manifest.classes) - 1
    return Predictions(
        ids=tuple(video.id for video in videos),
        labels=np.array([video.label == positive_label for video in videos], np.int64),
        probabilities=np.array([result.probability for result in results]),
        patient_ids=tuple(video.patient_id for video in videos),
        paths=tuple(video.id for video in videos),
        covariates=covariates,
    )


def _open_store(card: Card, cache: Path | None) -> ClipStore:
    clip = card.clip
    return ClipStore(
        cache or default_cache_dir(), clip.preprocess, clip.num_frames, clip.frame_interval_ms, roi=card.roi
    )


def _usable(store: ClipStore, selection: Selection) -> tuple[tuple[Video, ...], dict[str, str]]:
    """Decode; return the videos that have a window, and why others have none."""
    prepared = store.prepare(selection.videos)
    left_out = prepared.left_out
    for id_, reason in list(left_out.items())[:_NUM_NAMED]:
        print_line("warning", f"left out: {id_}: {reason}")
    if len(left_out) > _NUM_NAMED:
        print_line("warning", f"left out: {len(left_out) - _NUM_NAMED} more videos; metrics.json names them")
    return tuple(video for video in selection.videos if video.id not in left_out), left_out


def _check_classes(selection: Selection, card: Card, path: Path) -> None:
    positive_label = len(card.classes) - 1
    if len({video.label == positive_label for video in selection.videos}) < 2:
        raise ConfigError(
            f"{path}: {selection.description}, {len(selection.videos)} in number, are of one class only; measuring "
            f"needs videos of {card.classes[-1]!r} and of another class"
        )


def _data_of(manifest: Manifest, selection: Selection) -> Metrics:
    return {
        "name": manifest.path.name,
        "sha256": manifest.sha256,
        "selection": selection.description,
        "seen_in_training": dict(selection.seen),
    }
