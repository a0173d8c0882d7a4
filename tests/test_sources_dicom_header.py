"""What a DICOM header says of speed and regions, and DICOM files that are damaged or of the wrong kind."""

import itertools
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pydicom.uid as uids
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.tag import Tag
from source_files import dataset, encapsulated, noise, play, write_dicom

from edge.errors import SourceError
from edge.sources.base import Rect
from edge.sources.dicom.file import DicomFile

VECTOR = [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("tags", "interval_ms", "times_ms"),
    [
        ({}, 1000 / 30, [0, 33.333, 66.667, 100]),
        ({"FrameTime": "40"}, 40, [0, 40, 80, 120]),
        ({"FrameTime": "40", "CineRate": 10, "RecommendedDisplayFrameRate": 5}, 40, [0, 40, 80, 120]),
        ({"CineRate": 10, "RecommendedDisplayFrameRate": 5}, 100, [0, 100, 200, 300]),
        ({"RecommendedDisplayFrameRate": 5}, 200, [0, 200, 400, 600]),
        ({"FrameTimeVector": VECTOR}, 20, [0, 10, 30, 60]),
        ({"FrameTimeVector": VECTOR[:3]}, 15, [0, 10, 30, 45]),
        ({"FrameTime": "40", "FrameTimeVector": VECTOR}, 40, [0, 40, 80, 120]),
        (
            {"FrameTime": "40", "FrameTimeVector": VECTOR, "FrameIncrementPointer": Tag("FrameTimeVector")},
            20,
            [0, 10, 30, 60],
        ),
    ],
)
def test_timing_tags_give_times(
    tmp_path: Path,
    tags: dict[str, Any],
    interval_ms: float,
    times_ms: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = DicomFile(write_dicom(tmp_path / "a.dcm", dataset(noise(4, 4, 4), **tags)))
    assert source.info.frame_interval_ms == pytest.approx(interval_ms)
    assert [frame.t_media_ns / 1e6 for frame in play(source)] == pytest.approx(times_ms, abs=0.001)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("FrameTime", "0"),
        ("FrameTime", "-33"),
        ("FrameTimeVector", [0, 10, -5, 10]),
        ("FrameTimeVector", [0, 10, 0, 10]),
        ("CineRate", 0),
        ("CineRate", -3),
        ("RecommendedDisplayFrameRate", 0),
    ],
)
def test_timing_nonsense_is_not_used(
    tmp_path: Path, keyword: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    source = DicomFile(write_dicom(tmp_path / "a.dcm", dataset(noise(4, 4, 4), **{keyword: value})))
    assert source.info.frame_interval_ms == pytest.approx(1000 / 30)
    assert [record.getMessage() for record in caplog.records] == [
        f"'a.dcm': its {keyword} is no time or rate that a cine can have and is not used"
    ]


@pytest.mark.parametrize("text", [b"nan ", b"inf ", b"fast", b"1e-9"])
def test_timing_text_that_is_no_number_is_not_used(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_dicom(tmp_path / "a.dcm", dataset(noise(4, 4, 4), FrameTime="40.1"[: len(text)].ljust(len(text))))
    content = path.read_bytes()
    assert content.count(b"\x18\x00\x63\x10DS") == 1
    at = content.index(b"\x18\x00\x63\x10DS") + 8
    path.write_bytes(content[:at] + text + content[at + len(text) :])
    source = DicomFile(path)
    assert source.info.frame_interval_ms == pytest.approx(1000 / 30)


def _region(bounds: Rect, spatial_format: int = 1, data_type: int = 1) -> Dataset:
    region = Dataset()
    region.RegionSpatialFormat, region.RegionDataType = spatial_format, data_type
    region.RegionLocationMinX0, region.RegionLocationMinY0 = bounds[:2]
    region.RegionLocationMaxX1, region.RegionLocationMaxY1 = bounds[2:]
    return region


LARGE, SMALL = (2, 1, 30, 20), (5, 5, 9, 9)


@pytest.mark.parametrize(
    ("regions", "expected"),
    [
        ([], None),
        ([_region(LARGE)], (2, 1, 29, 20)),
        ([_region((2, 1, 500, 600))], (2, 1, 38, 29)),
        ([_region((0, 0, 39, 29))], (0, 0, 40, 30)),
        ([_region((40, 0, 80, 20))], None),
        ([_region((20, 20, 10, 10))], None),
        ([_region(SMALL), _region(LARGE)], (2, 1, 29, 20)),
        ([_region(LARGE, data_type=2), _region(SMALL)], (5, 5, 5, 5)),
        ([_region(LARGE, spatial_format=3), _region(SMALL)], (5, 5, 5, 5)),
        ([_region(LARGE, spatial_format=2)], None),
        ([_region(LARGE, data_type=2)], (2, 1, 29, 20)),
        ([Dataset(), _region(SMALL)], (5, 5, 5, 5)),
        ([_region((0, 0, 18, 29)), _region((20, 0, 38, 29))], (0, 0, 19, 30)),
    ],
)
def test_regions_give_the_largest_tissue_image(tmp_path: Path, regions: list[Dataset], expected: Rect | None) -> None:
    ds = dataset(noise(1, 30, 40), SequenceOfUltrasoundRegions=regions)
    assert DicomFile(write_dicom(tmp_path / "a.dcm", ds)).info.region == expected


@pytest.mark.parametrize(("bounds", "is_told"), [((2, 1, 500, 600), True), ((0, 0, 39, 29), False)])
def test_region_beyond_the_image_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bounds: Rect, is_told: bool
) -> None:
    ds = dataset(noise(1, 30, 40), SequenceOfUltrasoundRegions=[_region(bounds)])
    with caplog.at_level(logging.WARNING):
        DicomFile(write_dicom(tmp_path / "a.dcm", ds))
    told = [record.getMessage() for record in caplog.records]
    assert told == (
        [
            "the file's region of 499x600 at 2,1 does not fit into its image of 40x30 and is clipped; "
            "check what it leaves, or name another ROI"
        ]
        if is_told
        else []
    )


def test_region_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    ds = dataset(noise(1, 30, 40), SequenceOfUltrasoundRegions=[_region(LARGE), _region(SMALL)])
    path = write_dicom(tmp_path / "a.dcm", ds)
    # the first one's RegionSpatialFormat becomes half a floating-point number
    before, after = b"\x18\x00\x12\x60US\x02\x00\x01\x00", b"\x18\x00\x12\x60FL\x02\x00xx"
    assert path.read_bytes().count(before) == 2
    path.write_bytes(path.read_bytes().replace(before, after, 1))
    assert DicomFile(path).info.region == (5, 5, 5, 5)


def test_volume_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = dataset(noise(3, 8, 8), SOPClassUID=uids.EnhancedUSVolumeStorage)
    with caplog.at_level(logging.WARNING):
        DicomFile(write_dicom(tmp_path / "a.dcm", ds))
    [record] = caplog.records
    assert record.getMessage() == "'a.dcm' is a volume: its frames are slices and no moments of a cine; give a cine"


def _compressed(num_frames: int, syntax: uids.UID = uids.RLELossless) -> Dataset:
    ds = dataset(noise(num_frames, 40, 48))
    ds.compress(syntax, generate_instance_uid=False)
    return ds


@pytest.mark.parametrize("syntax", [uids.RLELossless, uids.JPEGLSLossless, uids.ExplicitVRLittleEndian])
@pytest.mark.parametrize("num_stated", [3, 9, 2**31 - 1])
def test_frames_other_than_stated_are_played_with_a_warning(
    tmp_path: Path, syntax: uids.UID, num_stated: int, caplog: pytest.LogCaptureFixture
) -> None:
    ds = _compressed(6, syntax) if syntax.is_encapsulated else dataset(noise(6, 40, 48))
    if syntax.is_encapsulated:
        images = list(generate_frames(ds.PixelData, number_of_frames=6))
        ds.PixelData = encapsulate(images, has_bot=False)
    ds.NumberOfFrames = num_stated
    frames = play(DicomFile(write_dicom(tmp_path / "a.dcm", ds)))
    np.testing.assert_array_equal([frame.pixels for frame in frames], noise(6, 40, 48))
    [record] = caplog.records
    assert record.getMessage().startswith("'a.dcm' is damaged: ")
    assert f"NumberOfFrames says {num_stated}, 6 are there; 6 frames played" in record.getMessage()


@pytest.mark.parametrize("syntax", [uids.RLELossless, uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian])
def test_file_cut_off_inside_its_pixels_plays_whole_frames(
    tmp_path: Path, syntax: uids.UID, caplog: pytest.LogCaptureFixture
) -> None:
    ds = _compressed(6) if syntax.is_encapsulated else dataset(noise(6, 40, 48))
    ds.file_meta.TransferSyntaxUID = syntax
    path = write_dicom(tmp_path / "a.dcm", ds)
    path.write_bytes(path.read_bytes()[:-5000])
    frames = play(DicomFile(path))
    np.testing.assert_array_equal([frame.pixels for frame in frames], noise(6, 40, 48)[: len(frames)])
    assert len(frames) == 3
    [record] = caplog.records
    assert record.getMessage() == (
        "'a.dcm' is damaged: its pixel data is cut off after 3 whole images; NumberOfFrames says 6, "
        f"{len(frames)} are there; 3 frames played"
    )


def test_frame_that_cannot_be_decoded_leaves_a_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = _compressed(4, uids.JPEGLSLossless)
    images = list(generate_frames(ds.PixelData, number_of_frames=4))
    images[1] = images[1][:40]
    ds.PixelData, ds.FrameTime = encapsulate(images), "10"
    frames = play(DicomFile(write_dicom(tmp_path / "a.dcm", ds)))
    assert [frame.t_media_ns / 1e6 for frame in frames] == [0, 20, 30]
    [record] = caplog.records
    assert "1 frame could not be decoded; 3 frames played" in record.getMessage()
    assert "JPEG-LS Lossless" in record.getMessage()


def _without(keyword: str) -> Dataset:
    ds = dataset(noise(2, 8, 8))
    delattr(ds, keyword)
    return ds


def _with_syntax(uid: str) -> Dataset:
    ds = _compressed(2)
    ds.file_meta.TransferSyntaxUID = uids.UID(uid)
    return ds


def _video_without_rows() -> Dataset:
    ds = encapsulated(dataset(noise(2, 8, 8)), uids.MPEG4HP41, [b"no video"])
    del ds.Rows
    return ds


@pytest.mark.parametrize(
    ("ds", "words"),
    [
        (_without("PixelData"), "holds no pixel data (Ultrasound Multi-frame Image Storage), or was cut off before it"),
        (_without("Rows"), "has Rows None; it must be 1 or more"),
        (_without("BitsStored"), "has BitsStored None; allowed are 1, 2"),
        (dataset(noise(2, 8, 8), SamplesPerPixel=4), "has SamplesPerPixel 4; allowed are 1, 3"),
        (dataset(noise(2, 8, 8), "CIELAB"), "has PhotometricInterpretation of another kind; allowed are MONOCHROME1"),
        (dataset(noise(2, 8, 32), BitsAllocated=32), "has BitsAllocated 32; allowed are 8, 16"),
        (dataset(noise(2, 8, 8), "PALETTE COLOR"), "its lookup tables are damaged"),
        (encapsulated(dataset(noise(2, 8, 8)), uids.MPEG4HP41, [b"no video"]), "'a.dcm' cannot be opened"),
        (_video_without_rows(), "has Rows None; it must be 1 or more"),
        (_with_syntax("1.2.840.10008.1.2.4.94"), "'JPIP Referenced', which cannot be decoded here; convert it to"),
        (_with_syntax("1.2.840.10008.1.2.4.51"), "gives no frame: its transfer syntax is JPEG Extended"),
    ],
)
def test_file_that_cannot_be_shown_is_refused(
    tmp_path: Path, ds: Dataset, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_dicom(tmp_path / "a.dcm", ds)
    with pytest.raises(SourceError) as caught:
        play(DicomFile(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value).lower()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        (b"1.2.3.4444444444444", "has the transfer syntax 1.2.3.4444444444444 that is private or not known"),
        (b"1.2.840.10008.1.1", "has the transfer syntax 1.2.840.10008.1.1 that is private or not known"),
        (b"Secret^Name", "has a transfer syntax that is private or not known"),
    ],
)
def test_file_of_an_unknown_transfer_syntax_is_refused(tmp_path: Path, uid: bytes, words: str) -> None:
    path = write_dicom(tmp_path / "a.dcm", _compressed(2))
    before = b"1.2.840.10008.1.2.5\0"
    assert path.read_bytes().count(before) == 1
    path.write_bytes(path.read_bytes().replace(before, uid.ljust(len(before), b"\0")))
    with pytest.raises(SourceError) as caught:
        DicomFile(path)
    assert words in str(caught.value)
    assert "Secret" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # as edge.sources sets it outside of pytest
def test_file_with_the_wrong_transfer_syntax_is_refused() -> None:
    with pytest.raises(SourceError, match="its pixel data is not as its transfer syntax 'JPEG Baseline"):
        DicomFile(Path(get_testdata_file("SC_rgb_jpeg.dcm")))


def test_dicomdir_is_refused_by_its_name() -> None:
    with pytest.raises(SourceError, match="is a DICOMDIR, a list of other files"):
        DicomFile(Path(get_testdata_file("DICOMDIR")))


@pytest.mark.parametrize("name", ["test-SR.dcm", "rtplan.dcm", "waveform_ecg.dcm", "reportsi.dcm"])
def test_object_without_an_image_is_refused(name: str) -> None:
    with pytest.raises(SourceError, match="holds no pixel data"):
        DicomFile(Path(get_testdata_file(name)))


def test_file_cut_off_anywhere_plays_or_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = write_dicom(tmp_path / "whole.dcm", _compressed(2)).read_bytes()
    path = tmp_path / "cut.dcm"
    outcomes = []
    for length in itertools.chain(range(1, 1200, 7), range(1200, len(content), 211)):
        path.write_bytes(content[:length])
        try:
            outcomes.append(len(play(DicomFile(path))))
        except SourceError:
            outcomes.append(0)
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {0, 1}
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")  # as edge.sources sets it outside of pytest
def test_header_with_random_damage_plays_or_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    content = write_dicom(tmp_path / "whole.dcm", _compressed(2)).read_bytes()
    rng = np.random.default_rng(5)
    messages = []
    for _ in range(150):
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[rng.integers(132, 900, 3)] = rng.integers(0, 256, 3)
        (tmp_path / "damaged.dcm").write_bytes(damaged.tobytes())
        try:
            assert len(list(DicomFile(tmp_path / "damaged.dcm").frames())) > 0
        except SourceError as error:
            messages.append(str(error))
    assert 10 < len(messages) < 140
    assert "\n" not in "".join(messages)
    assert "Secret" not in "".join(messages)
    assert capfd.readouterr().err == ""


def test_file_without_preamble_is_played(tmp_path: Path) -> None:
    ds = dataset(noise(2, 8, 8))
    del ds.file_meta
    pydicom.dcmwrite(tmp_path / "a.dcm", ds, implicit_vr=True, little_endian=True)
    assert (tmp_path / "a.dcm").read_bytes()[128:132] != b"DICM"
    np.testing.assert_array_equal([frame.pixels for frame in play(DicomFile(tmp_path / "a.dcm"))], noise(2, 8, 8))
