"""A small bundle to build into, and what the tests of edge-build do with it."""

from pathlib import Path

from engines import Bundle, PreprocessSpec, load_bundle
from engines.build import BuildOptions, build_engine
from tools.trivial import write_trivial_bundle

SPEC = PreprocessSpec(resize_hw=(32, 32), crop_hw=(32, 32))


def small_trivial(folder: Path, **options: object) -> Path:
    """Write a trivial bundle of four small frames."""
    return write_trivial_bundle(folder, num_frames=4, preprocess=SPEC, **options)  # type: ignore[arg-type]


def build_for_openvino(folder: Path, precision: str, **options: object) -> Bundle:
    """Build an engine into a bundle."""
    bundle, _, _ = build_engine(
        load_bundle(folder),
        "openvino",
        precision,
        BuildOptions(**options),  # type: ignore[arg-type]
        lambda *_: None,
    )
    return bundle


def files_of(folder: Path) -> dict[str, bytes]:
    """Return what each file of a folder holds, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}
