"""Writes a bundle of an untrained network, to measure a network's speed: `python -m trainer.untrained OUT`."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from edge.commandline import Parser, run_command
from engines import PreprocessSpec
from trainer.export import export_bundle
from trainer.models import MODELS, build_model


def main() -> int:
    """Run the command."""
    return run_command(_run)


def _run() -> int:
    parser = Parser(
        "python -m trainer.untrained",
        "Write a bundle of an untrained network of full size, to measure its speed.",
        "python -m trainer.untrained build/tin-r50 --model tin-r50 && edge-bench engine build/tin-r50",
    )
    parser.add_argument("folder", metavar="OUT", type=Path)
    parser.add_argument("--model", choices=sorted(MODELS), default="tin-r18", help="(default: %(default)s)")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = build_model(options.model, num_frames=1 if MODELS[options.model].is_static else 16).eval()
    with torch.no_grad():
        # evidence that cancels out would be little but rounding error, which says nothing about a precision
        [*_, head] = (part for part in model.modules() if isinstance(part, nn.Linear))
        head.weight.abs_()
    spec = PreprocessSpec()
    shape = (2, model.num_frames, spec.channels, *spec.crop_hw)
    export_bundle(
        model,
        options.folder,
        classes=("negative", "positive"),
        threshold=0.5,
        preprocess=spec,
        frame_interval_ms=1000 / 30,
        reference_clips=np.random.default_rng(0).random(shape, np.float32),
        name=f"untrained-{options.model}",
        intended_use="Measures speed; untrained, its output means nothing. Not a medical device.",
        training={"data": "none: not trained"},
    )
    print(f"wrote {options.folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
