"""The command `edge-train`: labelled videos in, a validated bundle and a report out."""

import importlib
import sys

from edge.commandline import Parser, log_lines, run_command

COMMANDS = {
    "check": "check a manifest: files, folds, leaks, balance, confounders",
    "fit": "train one network",
    "crossval": "train one network a fold",
    "evaluate": "measure a run, a bundle or a table of predictions",
    "report": "write one HTML page from runs and evaluations",
    "import": "turn a public checkpoint into a run",
    "export": "turn a run into a bundle",
}
"""Subcommand to its help; each is `trainer.commands.NAME`, which is imported when it is asked for and not before."""

_MODULES = {"import": "import_checkpoint"}  # a name that Python keeps for itself


def main() -> int:
    """Run the command."""
    return run_command(_run)


def _run() -> int:
    parser = Parser(
        "edge-train",
        "Train and measure a network on labelled ultrasound videos.",
        "edge-train fit manifest.csv --model tin-r18 --out runs/first",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), None)
    modules = {}
    for name, text in COMMANDS.items():
        if asked not in COMMANDS or name == asked:
            module = modules[name] = importlib.import_module(f"trainer.commands.{_MODULES.get(name, name)}")
            command = subparsers.add_parser(
                name, help=text, description=module.DESCRIPTION, example=f"edge-train {module.EXAMPLE}"
            )
            module.add_arguments(command)
    options = parser.parse_args()
    log_lines()
    return int(modules[options.command].run(options))


if __name__ == "__main__":
    raise SystemExit(main())
