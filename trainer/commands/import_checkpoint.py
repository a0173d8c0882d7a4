"""`edge-train import`: a public checkpoint becomes a run, to be trained further, evaluated or exported."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge.errors import ConfigError
from engines import PreprocessSpec
from trainer.models import MODELS

if TYPE_CHECKING:
    from trainer.checkpoints.network import Imported

DESCRIPTION = (
    "Turn a public checkpoint into a run: mmaction2 TIN, TSM or TSN; torchvision ResNets, R(2+1)D, Inception v3 and "
    "VGG19; 3D-ResNets-PyTorch. Only tensors are read; no code in the file is run."
)
EXAMPLE = "import tin_r50.pth --model tin-r50 --out runs/tin --classes benign,metastasis"

DEFAULT_FRAME_INTERVAL_MS = 1000 / 30
MAX_NAMED = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help=".pth, .pt, .ckpt or .safetensors")
    parser.add_argument("--model", required=True, choices=tuple(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--out", required=True, metavar="RUN", type=Path, help="the run's folder; must not hold a run")
    parser.add_argument("--classes", metavar="A,B,...", help="names, the positive one last (default: class-0, ...)")
    parser.add_argument(
        "--channels",
        type=int,
        choices=(1, 3),
        default=1,
        help="1: gray, the first convolution is summed over colour; 3: RGB, kept as it is (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Import, write the run and print what was used."""
    classes = parse_classes(options.classes)
    if (options.out / "run.json").exists():
        raise ConfigError(f"{options.out} holds a run already; give another --out, or remove it")
    from trainer.checkpoints.network import import_network
    from trainer.runs import IMPORTED, WEIGHTS_NAME, Run, write_run, write_weights

    imported = import_network(options.checkpoint, options.model, classes=classes, in_channels=options.channels)
    write_weights(options.out / WEIGHTS_NAME, imported.network.state_dict())
    write_run(
        Run(
            path=options.out,
            model=options.model,
            model_options=imported.options,
            classes=imported.classes,
            preprocess=PreprocessSpec(channels=options.channels),
            num_frames=imported.num_frames,
            frame_interval_ms=DEFAULT_FRAME_INTERVAL_MS,
            recipe={"checkpoint": options.checkpoint.name, "origin": imported.origin, "notes": list(imported.notes)},
            state=IMPORTED,
        )
    )
    _print_report(imported, options)
    return 0


def parse_classes(text: str | None) -> tuple[str, ...] | None:
    """Return the names; None where none are given.

    Raises:
        ConfigError: Fewer than two, an empty one, or one twice.
    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ConfigError(f"--classes is {text!r}; give two names or more, all different: benign,metastasis")
    return names


def _print_report(imported: "Imported", options: argparse.Namespace) -> None:
    num_parameters = sum(parameter.numel() for parameter in imported.network.parameters())
    print(f"{options.checkpoint}: {imported.origin}, {imported.num_used} of {imported.num_tensors} tensors used")
    print(f"{options.model}: {num_parameters:,} parameters, {imported.num_frames} frames, {_list(imported.classes)}")
    for title, names in (("not used", imported.not_used), ("not in the checkpoint", imported.at_start)):
        if names:
            print(f"{title}: {_list(names)}")
    for note in imported.notes:
        print(f"note: {note}")
    print(f"wrote {options.out}")


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
