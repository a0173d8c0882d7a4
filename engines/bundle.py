"""The bundle: a folder that holds one trained model and everything needed to run and check it."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import shlex
import stat
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from engines.errors import BundleError
from engines.reference import Reference, read_reference

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
REFERENCE_NAME = "reference.npz"
_MAX_SIDE_PX = 4096
_MAX_FRAMES = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How a frame becomes network input: ROI crop, gray, resize, centre crop, scale to [0, 1].

    Sizes are (height, width) in pixels.
    """

    resize_hw: tuple[int, int] = (256, 256)
    crop_hw: tuple[int, int] = (224, 224)
    channels: int = 1
    """1: gray; 3: RGB."""

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"preprocess.channels is {self.channels}; 1 and 3 are allowed")
        if not all(0 < crop <= size for crop, size in zip(self.crop_hw, self.resize_hw, strict=True)):
            raise ValueError(f"preprocess.crop_hw {self.crop_hw} does not fit into resize_hw {self.resize_hw}")
        if max(self.resize_hw) > _MAX_SIDE_PX:
            raise ValueError(f"preprocess.resize_hw is {self.resize_hw}; {_MAX_SIDE_PX} a side are allowed")


@dataclasses.dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of the bundle as the manifest lists it."""

    name: str
    sha256: str
    size_bytes: int
    kind: str
    """"onnx", "torch-export", "reference"; compiled kinds are added by edge-build."""
    precision: str | None = None
    build: Mapping[str, Any] | None = None
    """Of a compiled file: `backend`, `device`, `software` (versions), `hardware`, `options`, `parity` (`num_clips`,
    `probability_difference`, `heatmap_difference`), `windows_per_s`, `gain_over_fp32`, `fp32_device` (on which FP32 ran
    beside it) and `built_at`; all as JSON."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose manifest was read and whose files were found whole."""

    path: Path
    name: str
    classes: tuple[str, ...]
    """The last class is the positive one."""
    threshold: float
    """Operating point on the positive class's probability."""
    preprocess: PreprocessSpec
    num_frames: int
    frame_interval_ms: float
    intended_use: str
    training: Mapping[str, Any]
    files: tuple[BundleFile, ...]
    rankings: tuple[Mapping[str, Any], ...] = ()
    """What was measured on each machine; see `engines.ranking`."""

    @property
    def shell_path(self) -> str:
        """The folder as a shell takes it, for commands in messages."""
        return shlex.quote(str(self.path))

    @property
    def clip_tchw(self) -> tuple[int, int, int, int]:
        """Shape of a clip."""
        return (self.num_frames, self.preprocess.channels, *self.preprocess.crop_hw)

    def file(self, kind: str, precision: str | None = None) -> BundleFile:
        """Return the listed file of this kind.

        Raises:
            BundleError: The bundle lists none.
        """
        for file in self.files:
            if file.kind == kind and precision in (None, file.precision):
                return file
        wanted = f"{precision} {kind}" if precision else kind
        kinds = ", ".join(sorted({file.kind for file in self.files})) or "none"
        raise BundleError(f"bundle {self.path} has no {wanted} file (it lists: {kinds}); export it again")

    def has(self, kind: str, precision: str | None = None) -> bool:
        """Whether `file` would return one."""
        return any(file.kind == kind and precision in (None, file.precision) for file in self.files)

    def reference(self) -> Reference:
        """Read the reference clips and outputs.

        Raises:
            BundleError: The file is damaged or its shapes do not fit the manifest.
        """
        path = self.path / self.file("reference").name
        reference = read_reference(path)
        shapes = [array.shape for array in (reference.clips, reference.probabilities, reference.heatmaps)]
        num_clips = len(reference.clips)
        expected = [(num_clips, *self.clip_tchw), (num_clips, len(self.classes)), (num_clips, self.num_frames)]
        if num_clips == 0 or len(shapes[2]) != 4 or [*shapes[:2], shapes[2][:2]] != expected:
            raise BundleError(
                f"{path} holds clips {shapes[0]}, probabilities {shapes[1]} and heatmaps {shapes[2]}; the manifest "
                f"says {('n', *self.clip_tchw)}, {('n', len(self.classes))} and {('n', self.num_frames, 'h', 'w')}; "
                "export the bundle again"
            )
        return reference


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle's manifest and check that every file it lists is there and whole.

    Raises:
        BundleError: No manifest, a newer schema, a bad value, a missing file, or a hash that differs.
    """
    bundle = read_manifest(path)
    for file in bundle.files:
        _check_file(bundle.path, file)
    return bundle


def read_manifest(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle's manifest alone, for what it lists: whether the files are there and whole is not looked at.

    Raises:
        BundleError: No manifest, a newer schema, or a bad value.
    """
    folder = Path(path)
    return _parse_manifest(folder, _read_manifest(folder / MANIFEST_NAME))


def write_manifest(
    path: str | os.PathLike[str],
    *,
    name: str,
    classes: Sequence[str],
    threshold: float,
    preprocess: PreprocessSpec,
    num_frames: int,
    frame_interval_ms: float,
    outputs: Mapping[str, Any],
    intended_use: str,
    training: Mapping[str, Any],
    files: Sequence[tuple[str, str, str | None]],
) -> None:
    """Write `manifest.json` for files that already lie in the folder, hashing each.

    Args:
        path: The bundle's folder.
        name: The model's name, for people.
        classes: Class names, the positive one last.
        threshold: Operating point in [0, 1] on the positive class's probability.
        preprocess: How frames become input.
        num_frames: T.
        frame_interval_ms: Time between two frames of a clip.
        outputs: Name to {"shape", "dtype"} of each output.
        intended_use: What the model is for, and what it is not for.
        training: Summary of data, folds and metrics.
        files: (name, kind, precision or None) of each file.
    """
    folder = Path(path)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "classes": list(classes),
        "threshold": threshold,
        "preprocess": dataclasses.asdict(preprocess),
        "clip": {"num_frames": num_frames, "frame_interval_ms": frame_interval_ms},
        "outputs": dict(outputs),
        "intended_use": intended_use,
        "training": dict(training),
        "files": [
            _file_entry(describe_file(folder / file_name, kind, precision)) for file_name, kind, precision in files
        ],
    }
    _replace_manifest(folder, manifest)


def describe_file(path: Path, kind: str, precision: str | None, build: Mapping[str, Any] | None = None) -> BundleFile:
    """Return the entry of a file as it lies on disk, hashed now."""
    return BundleFile(path.name, sha256_of(path), path.stat().st_size, kind, precision, build)


def add_files(bundle: Bundle, *files: BundleFile) -> Bundle:
    """List files that already lie in the bundle's folder, over entries of the same names; in one atomic step.

    Raises:
        BundleError: The manifest cannot be read or written.
    """
    return replace_files(bundle, {file.name for file in files}, files)


def replace_files(bundle: Bundle, names: Set[str], files: Sequence[BundleFile]) -> Bundle:
    """List files that already lie in the bundle's folder, in place of those of these names; in one atomic step.

    Raises:
        BundleError: The manifest cannot be read or written.
    """
    manifest = _read_manifest(bundle.path / MANIFEST_NAME)
    entries = [_file_entry(file) for file in files]
    manifest["files"] = [entry for entry in manifest["files"] if entry["name"] not in names] + entries
    _rewrite_manifest(bundle.path, manifest)
    kept = tuple(file for file in bundle.files if file.name not in names)
    return dataclasses.replace(bundle, files=(*kept, *files))


def keep_rankings(bundle: Bundle, rankings: tuple[Mapping[str, Any], ...]) -> Bundle:
    """Write what was measured on each machine, in place of what stood there; in one atomic step.

    Raises:
        BundleError: The manifest cannot be read or written.
    """
    _rewrite_manifest(bundle.path, {**_read_manifest(bundle.path / MANIFEST_NAME), "rankings": list(rankings)})
    return dataclasses.replace(bundle, rankings=rankings)


def _rewrite_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    try:
        _replace_manifest(folder, manifest)
    except OSError as exc:
        raise BundleError(
            f"{folder / MANIFEST_NAME} cannot be written ({exc.strerror}); give it room and write permission"
        ) from exc


def _replace_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    temporary = folder / (MANIFEST_NAME + ".tmp")
    try:
        temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(folder / MANIFEST_NAME)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _file_entry(file: BundleFile) -> dict[str, Any]:
    """Return the manifest's entry; what is None is left out."""
    return {key: value for key, value in dataclasses.asdict(file).items() if value is not None}


def sha256_of(path: Path) -> str:
    """Return the file's SHA-256 in hex."""
    _require_file(path)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _require_file(path: Path) -> None:
    """Raise OSError for a pipe or a device, which might be read without end; a folder's error comes as it is opened."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        _require_file(path)
        manifest = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(manifest, ensure_ascii=False).encode()  # its escapes can make text that no file and no name can hold
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise BundleError(f"{path.parent} is not a bundle: it has no {MANIFEST_NAME}; name a bundle's folder") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise BundleError(f"{path} cannot be read ({exc}); export the bundle again") from exc
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:  # True == 1
        raise BundleError(
            f"{path} has schema_version {version!r}; this version reads {SCHEMA_VERSION}; update or export again"
        )
    return dict(manifest)


def _parse_manifest(folder: Path, manifest: dict[str, Any]) -> Bundle:
    try:
        spec = manifest["preprocess"]
        bundle = Bundle(
            path=folder,
            name=str(manifest["name"]),
            classes=_parse_classes(manifest["classes"]),
            threshold=float(manifest["threshold"]),
            preprocess=PreprocessSpec(_pair(spec["resize_hw"]), _pair(spec["crop_hw"]), int(spec["channels"])),
            num_frames=int(manifest["clip"]["num_frames"]),
            frame_interval_ms=float(manifest["clip"]["frame_interval_ms"]),
            intended_use=str(manifest["intended_use"]),
            training=dict(manifest["training"]),
            files=_parse_files(manifest["files"]),
            rankings=_parse_rankings(manifest.get("rankings", [])),
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as exc:
        raise BundleError(
            f"{folder / MANIFEST_NAME} is not valid: {type(exc).__name__} {exc}; export the bundle again"
        ) from exc
    if (
        not 1 <= bundle.num_frames <= _MAX_FRAMES
        or not 0 < bundle.frame_interval_ms < math.inf
        or not 0 <= bundle.threshold <= 1
    ):
        raise BundleError(
            f"{folder / MANIFEST_NAME} is not valid: it needs num_frames in 1..{_MAX_FRAMES}, a "
            "frame_interval_ms above 0 and a threshold in 0..1; export the bundle again"
        )
    return bundle


def _parse_classes(value: Any) -> tuple[str, ...]:
    is_names = isinstance(value, list) and all(isinstance(name, str) for name in value)
    if not is_names or len(value) < 2 or len(set(value)) < len(value):
        raise ValueError(f"classes is {value!r}; it must be a list of two names or more, all different")
    return tuple(value)


def _pair(value: Sequence[int]) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)


def _parse_files(entries: Sequence[Mapping[str, Any]]) -> tuple[BundleFile, ...]:
    files = tuple(map(_parse_file, entries))
    names = [file.name for file in files]
    if len(set(names)) < len(names):
        raise ValueError(f"files lists {max(names, key=names.count)!r} more than once")
    return files


def _parse_rankings(value: Any) -> tuple[dict[str, Any], ...]:
    if not isinstance(value, list) or not all(isinstance(ranking, dict) for ranking in value):
        raise ValueError(f"rankings is {value!r}; it must be a list of maps")
    return tuple(value)


def _parse_file(entry: Mapping[str, Any]) -> BundleFile:
    name = str(entry["name"])
    if name in ("", "..") or "\0" in name or Path(name).name != name:
        raise ValueError(f"file name {name!r} is not that of a file in the bundle's folder")
    precision = entry.get("precision")
    if not isinstance(precision, str | None):
        raise ValueError(f"precision of {name} is {precision!r}; it must be a name")
    return BundleFile(
        name,
        str(entry["sha256"]),
        int(entry["size_bytes"]),
        str(entry["kind"]),
        precision,
        _parse_build(entry.get("build")),
    )


def _parse_build(value: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if value is None:
        return None
    build = dict(value)
    kinds = {"builder": str, "device": str, "software": dict, "hardware": dict, "options": dict}
    for key, kind in kinds.items():
        if not isinstance(build.get(key, kind()), kind):
            raise ValueError(f"build.{key} is {build[key]!r}; it must be {'a name' if kind is str else 'a map'}")
    return build


def _check_file(folder: Path, file: BundleFile) -> None:
    path = folder / file.name
    try:
        digest = sha256_of(path)
    except OSError as exc:
        reason = "is missing" if isinstance(exc, FileNotFoundError) else f"cannot be read ({exc.strerror})"
        raise BundleError(f"bundle {folder}: {file.name} {reason}; copy the whole folder again") from exc
    if digest != file.sha256:
        raise BundleError(
            f"bundle {folder}: {file.name} has sha256 {digest[:12]}..., the manifest says {file.sha256[:12]}...; "
            "the file was changed or damaged; copy the whole folder again"
        )
