"""`edge-train check`: say what may spoil a training, before hours are spent."""

import argparse
from pathlib import Path

DESCRIPTION = "Check a manifest: files, folds, leaks, balance, near-duplicates, and what file metadata alone predict."
EXAMPLE = "check manifest.csv"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument(
        "manifest",
        metavar="MANIFEST",
        type=Path,
        help="CSV: path, label, patient_id; optional split, fold, site, roi, keyframe, mask; others are covariates",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="of decoded videos; fit finds them there again")


def run(options: argparse.Namespace) -> int:
    """Run the command."""
    from trainer.data.manifest import read_manifest

    manifest = read_manifest(options.manifest)  # before the slow imports: a fault shows at once

    from engines import PreprocessSpec
    from trainer.checks.findings import check_manifest
    from trainer.checks.report import print_report
    from trainer.data.clips import ClipStore, default_cache_dir

    store = ClipStore(options.cache or default_cache_dir(), PreprocessSpec())
    print_report(manifest, check_manifest(manifest, store))
    return 0
