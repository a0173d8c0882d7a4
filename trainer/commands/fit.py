"""`edge-train fit`: train one network."""

import argparse
from pathlib import Path
from typing import Any

from trainer.models import MODELS
from trainer.training.recipe import PRESETS

DESCRIPTION = "Train one network on labelled videos; threshold and temperature come from the validation videos."
EXAMPLE = "fit manifest.csv --model tin-r18 --out runs/first --preset best --set epochs=50"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    parser.add_argument("--fold", type=int, metavar="K", help="the fold that validates, where no split column says")
    parser.add_argument(
        "--profile", type=int, metavar="N", help="train N steps, print where their time goes, write no run"
    )


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `fit` and `crossval` share."""
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="CSV: path, label, patient_id, ...")
    parser.add_argument("--model", required=True, choices=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--out", required=True, type=Path, metavar="RUN", help="folder of what is trained")
    parser.add_argument("--preset", choices=list(PRESETS), default="paper", help="recipe (%(default)s)")
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one choice of the recipe; an unknown key lists all",
    )
    parser.add_argument(
        "--folds", dest="num_folds", type=int, default=5, metavar="N", help="where no fold column says (5)"
    )
    parser.add_argument("--by", choices=["patient", "site"], default="patient", help="what folds keep whole")
    parser.add_argument("--threshold-rule", default="youden", metavar="R", help="youden, or sensitivity=0.9")
    parser.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of folds, weights and augmentation (0)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of decoded videos")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="GPUs or processes a node (1)")
    parser.add_argument("--num-nodes", type=int, default=1, metavar="N", help="machines (1)")
    parser.add_argument("--precision", metavar="P", help="as Lightning names it: 32-true, bf16-mixed, 16-mixed")


def fit_options(options: argparse.Namespace) -> Any:
    """Return the options as `trainer.training.fit.fit` takes them."""
    from trainer.training.plan import FitOptions

    given = vars(options)
    names = FitOptions.__dataclass_fields__.keys() & given.keys()
    return FitOptions(**{**{name: given[name] for name in names}, "settings": tuple(options.settings)})


def run(options: argparse.Namespace) -> int:
    if options.profile is not None:
        from trainer.training.profile import profile

        print(profile(fit_options(options), options.profile))
        return 0
    from trainer.runs import FINISHED, describe_result
    from trainer.training.fit import fit

    trained = fit(fit_options(options))
    if trained.state == FINISHED:  # other processes of the same training have nothing to tell
        print(describe_result(trained))
    return 0
