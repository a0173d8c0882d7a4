"""`edge-train evaluate`: measure a run, a bundle, or a table of anyone's predictions."""

import argparse
import dataclasses
from pathlib import Path

from edge.errors import ConfigError

DESCRIPTION = "Measure a run or a bundle on labelled videos, or anyone's table of predictions."
EXAMPLE = "evaluate runs/first manifest.csv --out evaluations/first"

_DEFAULT_THRESHOLD = 0.5
_INTERVALS = ("wilson", "clopper-pearson")
_AGGREGATES = ("mean-logit", "mean-probability", "strongest")
_SPLITS = ("train", "val", "test", "all")
_SPLIT_HELP = f"videos to take: {', '.join(_SPLITS)} (what training and validation left out)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("model", metavar="BUNDLE|RUN", type=Path, nargs="?", help="what predicts")
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, nargs="?", help="CSV of labelled videos")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="metrics.json, tables and pictures go here"
    )
    parser.add_argument("--predictions", type=Path, metavar="CSV", help="id,label,probability: instead of videos")
    parser.add_argument("--readers", type=Path, metavar="CSV", help="reader,id,call: people to compare with")
    parser.add_argument(
        "--interval",
        choices=_INTERVALS,
        default=_INTERVALS[0],
        metavar="NAME",
        help=f"of proportions: {' or '.join(_INTERVALS)} (%(default)s)",
    )
    parser.add_argument(
        "--threshold", type=float, metavar="P", help="with --predictions alone (its threshold column, or 0.5)"
    )
    videos = parser.add_argument_group("with a run or a bundle")
    videos.add_argument("--split", choices=_SPLITS, metavar="NAME", help=_SPLIT_HELP)
    videos.add_argument(
        "--aggregate",
        choices=_AGGREGATES,
        default=_AGGREGATES[0],
        metavar="HOW",
        help=f"windows to a video: {', '.join(_AGGREGATES)} (%(default)s)",
    )
    videos.add_argument("--backend", metavar="B", help="that runs a bundle, as for edge-infer (auto)")
    videos.add_argument("--device", metavar="D", help="cpu, cuda or the backend's own name")
    videos.add_argument("--cache", type=Path, metavar="DIR", help="of decoded videos (as fit)")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.predictions is not None:
        _refuse_options_of_videos(options)
        return _evaluate_table(options)
    if options.model is None or options.manifest is None:
        raise ConfigError("give BUNDLE|RUN and MANIFEST, or --predictions CSV; see edge-train evaluate --help")
    if options.threshold is not None:
        raise ConfigError("--threshold goes with --predictions; a run or a bundle has its own, chosen in validation")
    from trainer.inference.evaluate_videos import evaluate_videos

    return evaluate_videos(options)


def _refuse_options_of_videos(options: argparse.Namespace) -> None:
    given = [str(options.model)] if options.model else []
    given += [f"--{name}" for name in ("split", "backend", "device", "cache") if getattr(options, name) is not None]
    if options.aggregate != _AGGREGATES[0]:
        given.append("--aggregate")
    if given:
        raise ConfigError(f"--predictions needs no model and no videos; leave out {', '.join(given)}")


def _evaluate_table(options: argparse.Namespace) -> int:
    from engines.bundle import sha256_of
    from trainer.evaluation.evaluate import Setup, evaluate
    from trainer.evaluation.folder import new_evaluation
    from trainer.evaluation.predictions import read_predictions, read_readers
    from trainer.evaluation.summary import print_summary

    threshold = _DEFAULT_THRESHOLD if options.threshold is None else options.threshold
    if not 0 <= threshold <= 1:
        raise ConfigError(f"--threshold is {threshold:g}; a probability in 0..1 is needed")
    path: Path = options.predictions
    predictions = read_predictions(path)
    if options.threshold is not None:
        predictions = dataclasses.replace(predictions, thresholds=None)
    readers = read_readers(options.readers, predictions.ids) if options.readers else []
    name = path.absolute().parent.name if path.stem == "predictions" else path.stem
    setup = Setup(
        name=name,
        threshold=threshold,
        interval=options.interval,
        model={"kind": "predictions", "name": name},
        data={"name": path.name, "sha256": sha256_of(path), "selection": "all rows"},
    )
    with new_evaluation(options.out, (path, options.readers)) as folder:
        metrics = evaluate(predictions, setup, folder, readers)
    print_summary(metrics, options.out)
    return 0
