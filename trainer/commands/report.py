"""`edge-train report`: one HTML page from runs and evaluations."""

import argparse
from pathlib import Path

from edge.errors import ConfigError

DESCRIPTION = "Write one self-contained HTML page from runs and evaluations, with its pictures and tables beside it."
EXAMPLE = "report evaluations/tin evaluations/resnet50 runs/tin --out report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "folders", metavar="RUN_OR_DIR", type=Path, nargs="+", help="--out of evaluate, fit or crossval; best first"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="HTML", help="the page, such as report.html")
    parser.add_argument("--title", default="Validation report", metavar="TEXT", help="of the page (%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    if options.out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out {options.out} is no page; give a file name that ends in .html")
    from trainer.report.page import write_report

    page, folder = write_report(options.folders, options.out, options.title)
    print(f"wrote {page} ({page.stat().st_size / 1e6:.1f} MB), and its pictures and tables in {folder}")
    return 0
