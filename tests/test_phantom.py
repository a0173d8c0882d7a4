"""The phantom: speckle physics, the two classes, and the data set that edge-phantom writes."""

import csv
from pathlib import Path

import av
import cv2
import numpy as np
import pydicom
import pytest

from edge.errors import ConfigError
from edge.phantom import Phantom
from edge.phantom.probe import Probe, ScanConverter
from edge.phantom.speckle import PointSpread, draw_scatterers, elevation_weights, envelope_db
from edge.sources.phantom import PhantomSource
from tools import phantom as command
from tools.phantom import DatasetSpec, node_region, write_dataset

LINEAR = Probe("linear", 40.0, 20.0, 0.0, 7.0, 0.3, 0.27, 0.9)
CONVEX = Probe("convex", 45.0, 0.55, 16.0, 5.0, 0.3, 0.0085, 0.9)
NUM_SWEEP = 32


def homogeneous_echoes(probe: Probe, seed: int) -> np.ndarray:
    """Return baseband echoes (2, samples, beams) of uniform tissue: fully developed speckle."""
    spread = PointSpread(probe, focus=0.5)
    return np.stack([spread.apply(part) for part in draw_scatterers(np.random.default_rng(seed))])


@pytest.fixture(scope="module")
def twins() -> list[tuple[Phantom, Phantom]]:
    """Phantoms that differ in nothing but the class."""
    return [(Phantom(seed, label=0), Phantom(seed, label=1)) for seed in range(6)]


# Speckle


@pytest.mark.parametrize("probe", [LINEAR, CONVEX], ids=["linear", "convex"])
def test_speckle_of_uniform_tissue_has_a_rayleigh_envelope(probe: Probe) -> None:
    envelope = np.hypot(*homogeneous_echoes(probe, 1))[20:-20, 10:-10]
    assert envelope.mean() / envelope.std() == pytest.approx(1.913, abs=0.06)  # sqrt(pi / (4 - pi))
    # the Rayleigh distribution's median and 99th percentile, for unit variance of each part
    assert np.percentile(envelope, (50, 99)) == pytest.approx((1.177, 3.035), rel=0.04)


def test_envelope_db_of_known_echoes_is_twenty_log_of_their_modulus() -> None:
    echoes = np.float32([[[3.0, 0.1]], [[4.0, 0.0]]])
    assert envelope_db(echoes) == pytest.approx(np.array([[13.979, -20.0]]), abs=1e-3)


def test_speckle_of_two_slices_decorrelates_with_their_elevation_distance() -> None:
    step_mm, sigma_mm = 0.4, 0.9
    planes_mm = np.arange(-20, 21) * step_mm
    fields = np.stack([homogeneous_echoes(LINEAR, seed)[0, ::4, ::4].ravel() for seed in range(len(planes_mm))])

    def slice_at(y_mm: float) -> np.ndarray:
        return elevation_weights(planes_mm - y_mm, sigma_mm) @ fields

    for distance_mm in (0.5, 1.2, 2.5):
        expected = np.exp(-((distance_mm / (2 * sigma_mm)) ** 2))  # autocorrelation of a Gaussian slice profile
        measured = np.corrcoef(slice_at(0.0), slice_at(distance_mm))[0, 1]
        assert measured == pytest.approx(expected, abs=0.07)


def test_speckle_in_the_sector_grows_with_depth() -> None:
    converter = ScanConverter(CONVEX, (640, 480))
    image = converter.convert(envelope_db(homogeneous_echoes(CONVEX, 3)), 0, 0, 0)
    middle = image[:, image.shape[1] // 2 - 50 : image.shape[1] // 2 + 50]

    def lateral_correlation(rows: np.ndarray) -> float:
        return float(np.corrcoef(rows[:, 4:].ravel(), rows[:, :-4].ravel())[0, 1])

    assert lateral_correlation(middle[-90:-10]) > lateral_correlation(middle[80:160]) + 0.15


# Phantom


def test_frame_of_one_seed_is_the_same_bytes_in_any_order() -> None:
    forward, backward = Phantom(3), Phantom(3)
    indices = (0, 2, 900, 901)
    frames = {i: forward.frame(i).tobytes() for i in indices}
    assert {i: backward.frame(i).tobytes() for i in reversed(indices)} == frames
    assert len(set(frames.values())) == len(indices)
    assert Phantom(4).frame(0).tobytes() != frames[0]


def test_geometries_over_seeds_are_both_drawn() -> None:
    assert {Phantom(seed).probe.kind for seed in range(12)} == {"linear", "convex"}


@pytest.mark.parametrize("size_wh", [(320, 240), (256, 256), (123, 301)])
def test_frame_outside_the_region_shows_nothing_but_the_word(size_wh: tuple[int, int]) -> None:
    for seed in (0, 4):
        phantom = Phantom(seed, size_wh=size_wh)
        frame, (x, y, width, height) = phantom.frame(0), phantom.region
        assert frame.shape == phantom.mask(0).shape == size_wh[::-1]
        assert frame.dtype == np.uint8
        inside = frame[y : y + height, x : x + width]
        assert inside.size == width * height
        assert inside.mean() > 30
        assert frame[:y].any()
        assert not frame[y + height :].any()
        assert not frame[y:, :x].any()
        assert not frame[y:, x + width :].any()


def test_mask_of_the_node_is_darker_than_its_surroundings(twins: list[tuple[Phantom, Phantom]]) -> None:
    contrasts = []
    for _, suspicious in twins:
        masks = [suspicious.mask(i) for i in range(NUM_SWEEP)]
        index = int(np.argmax([mask.sum() for mask in masks]))
        frame, mask = suspicious.frame(index).astype(float), masks[index].astype(np.uint8)
        ring = cv2.dilate(mask, np.ones((25, 25))) - cv2.dilate(mask, np.ones((7, 7)))
        core = cv2.erode(mask, np.ones((5, 5)))
        contrasts.append(frame[(ring > 0) & (frame > 0)].mean() - frame[core > 0].mean())
    assert min(contrasts) > 5
    assert np.mean(contrasts) > 25


def test_hilum_is_seen_in_part_of_a_benign_sweep_and_never_in_a_suspicious_one(
    twins: list[tuple[Phantom, Phantom]],
) -> None:
    for benign, suspicious in twins:
        visible = np.mean([benign.hilum_visible(i) for i in range(64)])
        assert 0.2 < visible < 0.65
        assert 0.2 < benign.covariates["hilum_fraction"] < 0.65
        assert suspicious.covariates["hilum_fraction"] == 0
        assert not any(suspicious.hilum_visible(i) for i in range(64))


@pytest.mark.slow
def test_hilum_where_visible_brightens_the_node_against_its_suspicious_twin(
    twins: list[tuple[Phantom, Phantom]],
) -> None:
    for benign, suspicious in twins:
        excess: dict[bool, list[float]] = {True: [], False: []}
        for i in range(NUM_SWEEP):
            core = benign.mask(i) & suspicious.mask(i)
            if core.sum() > 200:
                difference = benign.frame(i)[core].mean() - suspicious.frame(i)[core].mean()
                excess[benign.hilum_visible(i)].append(float(difference))
        assert np.mean(excess[True]) > np.mean(excess[False]) + 8


@pytest.mark.slow
def test_frame_of_twins_away_from_the_node_is_identical(twins: list[tuple[Phantom, Phantom]]) -> None:
    """Nothing but the node tells the classes: no other pixel knows the label."""
    for benign, suspicious in twins:
        far = np.ones(benign.mask(0).shape, bool)
        nodes = [p.mask(i) for p in (benign, suspicious) for i in range(NUM_SWEEP)]
        near = cv2.dilate(np.any(nodes, axis=0).astype(np.uint8), np.ones((41, 41))) > 0
        columns, top = np.flatnonzero(near.any(axis=0)), np.flatnonzero(near.any(axis=1))[0]
        shadow_px = 60  # beams of a sector fan out below the node
        far[top:, max(0, columns[0] - shadow_px) : columns[-1] + shadow_px] = False
        assert far.mean() > 0.1
        for i in (0, 7, 15):
            assert np.array_equal(benign.frame(i)[far], suspicious.frame(i)[far])
        assert benign.covariates["depth_mm"] == suspicious.covariates["depth_mm"]


def test_windows_of_sixteen_frames_nearly_always_pass_the_hilum() -> None:
    windows = []
    for seed in range(0, 80, 2):
        phantom = Phantom(seed)
        visible = np.array([phantom.hilum_visible(i) for i in range(64)])
        windows += list(np.lib.stride_tricks.sliding_window_view(visible, 16).any(axis=1))
    assert np.mean(windows) > 0.97


def test_label_without_a_choice_is_the_seeds_parity() -> None:
    assert [Phantom(seed).label for seed in (4, 5)] == [0, 1]


@pytest.mark.parametrize(("seed", "size_wh"), [(-1, (320, 240)), (0, (10, 240)), (0, (320, 9999))])
def test_phantom_of_bad_arguments_is_refused(seed: int, size_wh: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="give"):
        Phantom(seed, size_wh=size_wh)


# Source


def test_source_yields_the_phantoms_frames_until_closed() -> None:
    source, phantom = PhantomSource(7), Phantom(7)
    frames = []
    for frame in source.frames():
        frames.append(frame)
        if len(frames) == 4:
            source.close()
            source.close()
    assert [frame.index for frame in frames] == [0, 1, 2, 3]
    assert [frame.t_media_ns for frame in frames] == [0, 33_333_333, 66_666_667, 100_000_000]
    assert np.array_equal(frames[3].pixels, phantom.frame(3))
    assert (source.info.region, source.info.is_live) == (phantom.region, False)
    assert source.info.name == "phantom:7"
    assert "synthetic" in source.info.note


# Data set


@pytest.fixture(scope="module")
def mp4_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "with space"
    rows = list(write_dataset(DatasetSpec(out, num_videos=20, seed=2, num_frames=3, size_wh=(160, 120))))
    assert len(rows) == 20
    return out


def manifest_of(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_manifest_of_a_data_set_is_complete_and_balanced(mp4_set: Path) -> None:
    rows = manifest_of(mp4_set)
    wanted = {
        "path",
        "label",
        "patient_id",
        "split",
        "fold",
        "mask",
        "seed",
        "geometry",
        "depth_mm",
        "hilum_fraction",
        "roi",
    }
    assert wanted <= set(rows[0])
    assert len({row["patient_id"] for row in rows}) == len({row["seed"] for row in rows}) == len(rows) == 20
    for column, values in (("split", {"train", "val", "test"}), ("fold", set("01234"))):
        assert {row[column] for row in rows} == values
        for value in values:
            labels = [row["label"] for row in rows if row[column] == value]
            assert labels.count("0") == labels.count("1") > 0


def test_files_of_a_data_set_are_the_phantom_that_its_seed_names(mp4_set: Path) -> None:
    for row in manifest_of(mp4_set)[:2]:
        phantom = Phantom(int(row["seed"]), size_wh=(160, 120))
        assert phantom.label == int(row["label"])
        assert row["roi"] == ",".join(map(str, phantom.region))
        masks = np.load(mp4_set / row["mask"])["masks"]
        assert masks.shape == (3, 120, 160)
        assert np.array_equal(masks, [phantom.mask(i) for i in range(3)])
        with av.open(str(mp4_set / row["path"])) as container:
            assert "Synthetic" in container.metadata["title"]
            assert "Synthetic" in container.metadata["comment"]
            assert container.streams.video[0].average_rate == 30
            frames = [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
        assert len(frames) == 3
        error = np.abs(np.stack(frames).astype(int) - [phantom.frame(i) for i in range(3)])
        assert error.mean() < 4


def test_data_set_written_twice_by_any_number_of_processes_is_the_same_bytes(mp4_set: Path, tmp_path: Path) -> None:
    spec = DatasetSpec(tmp_path / "again", num_videos=2, seed=2, num_frames=3, size_wh=(160, 120))
    assert len(list(write_dataset(spec, num_jobs=2))) == 2
    for name in ("videos/000000.mp4", "videos/000001.mp4", "masks/000000.npz", "masks/000001.npz"):
        assert (spec.out / name).read_bytes() == (mp4_set / name).read_bytes()


def test_data_set_cropped_to_the_node_holds_the_node_of_every_frame(tmp_path: Path) -> None:
    spec = DatasetSpec(tmp_path / "set", num_videos=2, seed=3, num_frames=12, crop="node")
    for row in write_dataset(spec):
        x, y, width, height = map(int, row["roi"].split(","))
        masks = np.load(spec.out / row["mask"])["masks"]
        assert masks.any()
        assert masks[:, y : y + height, x : x + width].sum() == masks.sum()
        image = Phantom(row["seed"], size_wh=spec.size_wh).region
        assert width * height < image[2] * image[3]
        assert image[0] <= x
        assert x + width <= image[0] + image[2]
        assert image[1] <= y
        assert y + height <= image[1] + image[3]


def test_node_region_where_no_frame_shows_the_node_is_the_image() -> None:
    assert node_region(np.zeros((2, 20, 30), np.uint8), (3, 4, 20, 10)) == (3, 4, 20, 10)


def test_dicom_of_a_phantom_reads_back_lossless_and_says_synthetic(tmp_path: Path) -> None:
    spec = DatasetSpec(tmp_path / "dicom", num_videos=2, seed=3, format="dcm", num_frames=4, size_wh=(161, 121))
    row = list(write_dataset(spec))[1]
    phantom = Phantom(row["seed"], size_wh=spec.size_wh)
    dataset = pydicom.dcmread(spec.out / row["path"])
    assert np.array_equal(dataset.pixel_array, [phantom.frame(i) for i in range(4)])
    assert dataset.file_meta.TransferSyntaxUID == pydicom.uid.JPEGLSLossless
    assert dataset.SOPClassUID == dataset.file_meta.MediaStorageSOPClassUID == "1.2.840.10008.5.1.4.1.1.3.1"
    assert (dataset.Modality, dataset.PhotometricInterpretation, dataset.NumberOfFrames) == ("US", "MONOCHROME2", 4)
    assert (float(dataset.FrameTime), dataset.FrameIncrementPointer) == (33.333, 0x00181063)
    x, y, width, height = phantom.region
    region = dataset.SequenceOfUltrasoundRegions[0]
    assert (region.RegionLocationMinX0, region.RegionLocationMinY0) == (x, y)
    assert (region.RegionLocationMaxX1, region.RegionLocationMaxY1) == (x + width - 1, y + height - 1)
    assert region.PhysicalDeltaX * 10 == pytest.approx(phantom.mm_per_px)
    assert (dataset.SyntheticData, dataset.ImageType[0]) == ("YES", "DERIVED")
    for keyword in (
        "PatientName",
        "PatientID",
        "Manufacturer",
        "SeriesDescription",
        "StudyDescription",
        "ImageComments",
    ):
        assert "synthetic" in str(dataset[keyword].value).lower()
    required = (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
    )
    assert all(
        keyword in dataset for keyword in (*required, "AccessionNumber", "ReferringPhysicianName", "InstanceNumber")
    )


# Command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["edge-phantom", *arguments])
    return command.main()


def test_command_with_good_arguments_writes_and_says_synthetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, str(out), "--num-videos", "2", "--seed", "1", "--num-frames", "1", "--size", "128x96") == 0
    said = capsys.readouterr()
    assert "2 synthetic videos (1 benign, 1 suspicious" in said.out
    assert said.err == ""
    assert len(manifest_of(out)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-videos", "0", "--seed", "1"], "got 0 videos; give 1 to"),
        (["--num-videos", "2", "--seed", "-1"], "negative"),
        (["--num-videos", "2"], "--seed"),
        (["--num-videos", "two", "--seed", "1"], "two"),
        (["--num-videos", "2", "--seed", "1", "--num-frames", "0"], "got 0 frames"),
        (["--num-videos", "2", "--seed", "1", "--size", "320"], "expected WIDTHxHEIGHT"),
        (["--num-videos", "2", "--seed", "1", "--size", "8x8"], "out of range"),
        (["--num-videos", "2", "--seed", "1", "--size", "321x240"], "even"),
        (["--num-videos", "2", "--seed", "1", "--format", "avi"], "mp4"),
        (["--num-videos", "2", "--seed", "1", "--jobs", "0"], "from 1"),
        (["--num-videos", "2", "--seed", "1", "--nope"], "--nope"),
    ],
)
def test_command_with_bad_arguments_ends_with_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, str(out), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


def test_command_into_a_folder_in_use_or_a_file_leaves_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for out in (tmp_path, kept, kept / "below"):
        assert run(monkeypatch, str(out), "--num-videos", "1", "--seed", "1") == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "mine"


def test_command_help_fits_a_screen_with_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert text.count("\n") <= 24
    assert "synthetic" in text
    assert "example: edge-phantom" in text
