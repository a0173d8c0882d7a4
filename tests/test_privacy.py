"""What must never leave the process: a name burned into the screen, and all that a file knows of its patient."""

import itertools
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from daemon import Recording, record
from source_files import dataset, write_dicom

from edge import wire

NAME = "DOE^JANE"
SCREEN_HW = (360, 480)
IMAGE = (120, 90, 300, 240)
"""x, y, width, height of the moving image on the screen."""
NUM_FRAMES = 40


def _burned_in(text: str = "DOE, JANE 1970-01-01") -> np.ndarray:
    """Return the name as the scanner draws it: (30, 320) uint8."""
    picture = np.zeros((30, 320), np.uint8)
    cv2.putText(picture, text, (4, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.8, 255, 2)
    return picture


def _screens(name_xy: tuple[int, int] | None) -> np.ndarray:
    """Return a scanner's screens (n, H, W), a name on them, and tissue that moves."""
    random = np.random.default_rng(3)
    x, y, width, height = IMAGE
    tissue = cv2.GaussianBlur(random.normal(0, 1, (height, width + NUM_FRAMES)).astype(np.float32), (0, 0), 3)
    tissue = np.clip(110 + 45 * tissue / tissue.std(), 20, 220).astype(np.uint8)
    screens = np.zeros((NUM_FRAMES, *SCREEN_HW), np.uint8)
    for index, screen in enumerate(screens):
        flicker = random.integers(0, 25, (height, width), np.uint8)
        screen[y : y + height, x : x + width] = tissue[:, index : index + width] + flicker
        if name_xy is not None:
            left, top = name_xy
            below = screen[top : top + 30, left : left + 320]
            np.maximum(below, _burned_in(), out=below)
    return screens


def _is_seen(picture: np.ndarray) -> bool:
    """Whether the name, or a half of it, stands in a picture."""
    name = _burned_in()
    gray = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    halves = [name[:, :150], name[:, 150:300]]
    fitting = [half for half in halves if half.shape[0] <= gray.shape[0] and half.shape[1] <= gray.shape[1]]
    return any(cv2.matchTemplate(gray, half, cv2.TM_CCOEFF_NORMED).max() > 0.5 for half in fitting)


def _jpegs(recording: Recording) -> list[np.ndarray]:
    return [
        cv2.imdecode(np.frombuffer(message.buffers[0], np.uint8), cv2.IMREAD_GRAYSCALE)
        for message in recording.of("frame")
    ]


def _recorded(folder: Path) -> list[np.ndarray]:
    """Return every picture of every video that lies under a folder."""
    pictures = []
    for path in sorted(folder.rglob("*.mkv")) + sorted(folder.rglob("*.mp4")):
        with av.open(str(path)) as container:
            pictures += [frame.to_ndarray(format="gray") for frame in container.decode(video=0)]
    return pictures


def _files_that_hold(folder: Path, word: bytes) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and word in path.read_bytes()]


def _play(tmp_path: Path, bundle: Path, screens: np.ndarray, *options: str) -> Recording:
    source = write_dicom(
        tmp_path / "exam.dcm", dataset(screens, PatientName=NAME, PatientID="ID-4711", FrameTime="33.3")
    )
    folder = tmp_path / "left"
    folder.mkdir()
    return record(
        *("--source", str(source), "--engine", str(bundle), "--pace", "max", "--frames", "30"),
        *("--record", str(folder / "recording"), "--status-file", str(folder / "status.json"), *options),
    )


def test_name_outside_the_image_is_in_no_message_frame_log_recording_or_file(
    tmp_path: Path, trivial_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    screens = _screens(name_xy=(10, 8))
    assert _is_seen(screens[0])  # the search finds it where it is

    recording = _play(tmp_path, trivial_bundle, screens, "--log-format", "json")

    assert recording.exit_code == 0, recording.stderr
    jpegs, recorded = _jpegs(recording), _recorded(tmp_path / "left")
    assert (len(recording.predictions), len(jpegs) > 10, len(recorded)) == (NUM_FRAMES - 15, True, NUM_FRAMES)
    assert not any(_is_seen(picture) for picture in itertools.chain(jpegs, recorded))
    everything = b"".join(
        part for message in recording.messages for part in wire.encode(message.kind, message.header, *message.buffers)
    )
    for word in (b"DOE", b"JANE", b"4711"):
        assert word not in everything
        assert word not in recording.stderr.encode()
        assert _files_that_hold(tmp_path / "left", word) == []
    assert list(temporary.iterdir()) == []


def test_name_inside_the_image_is_gone_where_it_is_masked(tmp_path: Path, trivial_bundle: Path) -> None:
    screens = _screens(name_xy=(100, 300))  # over the image's lower part
    recording = _play(tmp_path, trivial_bundle, screens, "--roi", "60,60,400,280", "--mask", "96,296,330,40;0,0,480,20")

    assert recording.exit_code == 0, recording.stderr
    jpegs, recorded = _jpegs(recording), _recorded(tmp_path / "left")
    assert len(jpegs) > 10
    for picture in itertools.chain(jpegs, recorded):
        assert not _is_seen(picture)
        assert picture.shape == (280, 400)
        assert picture[240:272, 40:360].max() < 24  # JPEG's ringing
        assert picture[:230, 70:340].mean() > 60
    heatmaps = [message.heatmap() for message in recording.of("prediction")]
    assert len(heatmaps) == NUM_FRAMES - 15


def test_name_inside_the_image_is_seen_without_a_mask(tmp_path: Path, trivial_bundle: Path) -> None:
    recording = _play(tmp_path, trivial_bundle, _screens(name_xy=(100, 300)), "--roi", "60,60,400,280")
    assert all(_is_seen(picture) for picture in _jpegs(recording))  # else the test above would show nothing


def test_screen_that_stands_still_leaves_no_picture_behind(tmp_path: Path, trivial_bundle: Path) -> None:
    still = np.repeat(_screens(name_xy=(10, 8))[:1], NUM_FRAMES, axis=0)  # no image found: the ROI is the full screen
    recording = _play(tmp_path, trivial_bundle, still)
    assert recording.of("frame") == []
    assert not any(_is_seen(picture) for picture in _recorded(tmp_path / "left"))
