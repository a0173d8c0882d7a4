"""`edge-train crossval`: train one network a fold."""

import argparse

from trainer.commands.fit import add_training_arguments, fit_options

DESCRIPTION = "Train one network a fold; each video gets a probability from the network that did not see it."
EXAMPLE = "crossval manifest.csv --model tin-r18 --out runs/five --folds 5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)


def run(options: argparse.Namespace) -> int:
    from trainer.training.crossval import cross_validate

    summary = cross_validate(fit_options(options))
    if summary:
        auc, whole = summary["mean"]["auc"], summary["out_of_fold"]
        spread = "" if auc["sd"] is None else f" +- {auc['sd']:.3f}"
        print(
            f"{options.out}: best {summary['best']}; auc of the folds {auc['mean']:.3f}{spread}, of all "
            f"{whole['n']} out-of-fold videos together {whole['auc']:.3f}; sensitivity {whole['sensitivity']:.3f}, "
            f"specificity {whole['specificity']:.3f}, each fold at the threshold that the other folds give"
        )
    return 0
