"""The whole daemon as a process, with real files and a real subscriber."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pydicom.data
import pydicom.examples
import pytest
from daemon import record, run_command, running
from media import write_images, write_video

from edge import __version__
from tools.trivial import write_trivial_bundle

NUM_FRAMES = 16


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("with space and ü") / "ciné 1.mp4", 40)


@pytest.fixture(scope="module")
def short_video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("short") / "short.mp4", NUM_FRAMES - 1)


def test_infer_video_at_max_pace_gives_every_window_once(video: Path, trivial_bundle: Path) -> None:
    recording = record("--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--roi", "full")

    assert recording.exit_code == 0, recording.stderr
    assert recording.windows == [(first, first + NUM_FRAMES - 1) for first in range(40 - NUM_FRAMES + 1)]
    assert [header["seq"] for header in recording.predictions] == list(range(25))
    for header in recording.predictions:
        assert header["window"]["span_ms"] == pytest.approx(15 * 1000 / 30, abs=1)
        assert header["window"]["num_skipped"] == 0
        assert header["state"] == "LIVE"
    last = recording.messages[-1]
    assert last.kind == "status"
    assert (last.header["state"], last.header["reason"]) == ("NO_SIGNAL", "the source ended")
    assert last.header["counters"]["captured"] == 40
    assert last.header["counters"]["published"] == 25
    assert last.header["counters"]["skipped"] == 0


def test_infer_prediction_tells_what_its_frames_hold(video: Path, trivial_bundle: Path) -> None:
    recording = record("--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--roi", "full")

    heatmap = recording.of("prediction")[4].heatmap()
    assert heatmap is not None
    corner = heatmap[:, 3, 0].astype(float) * 255  # the background there tells the frame's index
    np.testing.assert_allclose(corner, [20 + 2 * index for index in range(4, 20)], atol=2)


def test_infer_hop_sets_the_distance_of_windows(video: Path, trivial_bundle: Path) -> None:
    recording = record(
        "--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--roi", "full", "--hop", "5"
    )

    assert recording.windows == [(0, 15), (5, 20), (10, 25), (15, 30), (20, 35)]


def test_infer_at_max_pace_twice_gives_the_same_bytes(video: Path, trivial_bundle: Path) -> None:
    arguments = ("--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--hop", "3")
    first, second = record(*arguments), record(*arguments)

    assert len(first.predictions) == 9
    for one, other in zip(first.of("prediction"), second.of("prediction"), strict=True):
        assert one.buffers == other.buffers
        for key in ("seq", "probabilities", "window", "heatmap", "positive", "state"):
            assert one.header[key] == other.header[key]


def test_infer_states_are_told_in_order(video: Path, trivial_bundle: Path) -> None:
    recording = record("--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--roi", "full")

    states = [state for state, _ in recording.states]
    assert states[-2:] == ["LIVE", "NO_SIGNAL"]
    assert set(states[:-2]) == {"WARMUP"}
    kinds = [message.kind for message in recording.messages]
    told_live = next(place for place, message in enumerate(recording.messages) if message.header.get("state") == "LIVE")
    assert kinds[told_live] == "status"


def test_infer_publishes_no_file_name_for_it_may_be_a_patients(
    video: Path, trivial_bundle: Path, tmp_path: Path
) -> None:
    named = shutil.copy(video, tmp_path / "DOE_JANE.mp4")
    recording = record("--source", str(named), "--engine", str(trivial_bundle), "--pace", "max", "--frames", "30")

    assert len(recording.predictions) == 25
    assert {message.header["source"] for message in recording.of("status")} == {"video file"}
    assert not [message for message in recording.messages if "DOE" in str(message)]
    assert "DOE_JANE.mp4" in recording.stderr  # the log stays on this host


def test_infer_video_shorter_than_a_clip_says_so_and_exits_0(short_video: Path, trivial_bundle: Path) -> None:
    recording = record("--source", str(short_video), "--engine", str(trivial_bundle), "--pace", "max")

    assert recording.exit_code == 0
    assert recording.predictions == []
    warnings = [line for line in recording.stderr.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "15 frames" in warnings[0]
    assert "a window needs 16 of these in a row" in warnings[0]


def test_infer_size_change_in_the_middle_is_spanned_by_no_window(tmp_path: Path, trivial_bundle: Path) -> None:
    folder = write_images(tmp_path / "images", [(320, 240)] * 20 + [(400, 300)] * 20)
    recording = record("--source", str(folder), "--engine", str(trivial_bundle), "--pace", "max", "--roi", "full")

    assert recording.exit_code == 0
    assert recording.windows == [*((k, k + 15) for k in range(5)), *((k, k + 15) for k in range(20, 25))]
    reset = ("WARMUP", "the image size changed from 320x240 to 400x300")
    assert reset in recording.states
    assert recording.states.index(reset) < recording.states.index(("LIVE", ""), recording.states.index(reset))
    assert recording.messages[-1].header["counters"]["resets"] == 1


def test_infer_loop_goes_on_counting_and_max_windows_is_exact(short_video: Path, trivial_bundle: Path) -> None:
    recording = record(
        *("--source", str(short_video), "--engine", str(trivial_bundle), "--pace", "max", "--roi", "full"),
        *("--loop", "--max-windows", "30"),
    )

    assert recording.exit_code == 0
    assert recording.windows == [(k, k + 15) for k in range(30)]


def test_infer_in_realtime_plays_at_the_videos_own_speed(video: Path, trivial_bundle: Path) -> None:
    recording = record("--source", str(video), "--engine", str(trivial_bundle), "--roi", "full")

    captures_ns = [header["t_capture_ns"] for header in recording.predictions]
    windows = recording.windows
    played_ms = (captures_ns[-1] - captures_ns[0]) / 1e6
    assert played_ms == pytest.approx((windows[-1][1] - windows[0][1]) * 1000 / 30, abs=40)
    counters = recording.messages[-1].header["counters"]
    assert counters["captured"] == 40
    assert counters["published"] + counters["skipped"] == 25


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_infer_signal_ends_within_two_seconds_with_a_last_status(number: signal.Signals, trivial_bundle: Path) -> None:
    with running("--source", "demo", "--engine", str(trivial_bundle)) as daemon:
        daemon.receive("prediction")
        start_s = time.monotonic()
        daemon.signal(number)
        daemon.process.wait(timeout=10)
        assert time.monotonic() - start_s < 2
        recording = daemon.finish()

    assert recording.exit_code == 0, recording.stderr
    assert recording.messages[-1].kind == "status"
    assert recording.states[-1] == ("NO_SIGNAL", f"stopped by {number.name}")
    assert "Traceback" not in recording.stderr


def test_infer_under_nohup_outlives_its_terminal(trivial_bundle: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup hands it on
    try:
        with running("--source", "demo", "--engine", str(trivial_bundle)) as daemon:
            daemon.receive("prediction")
            daemon.signal(signal.SIGHUP)
            for _ in range(30):
                daemon.receive("prediction")
            assert daemon.process.poll() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_infer_signal_while_it_waits_for_subscribers_ends_it(trivial_bundle: Path) -> None:
    with running("--source", "demo", "--engine", str(trivial_bundle), "--wait-subscribers", "5") as daemon:
        while "waiting for 16 frames" not in daemon.receive("status").header["reason"]:
            pass
        daemon.signal(signal.SIGTERM)
        recording = daemon.finish()

    assert recording.exit_code == 0
    assert recording.messages[-1].header["counters"]["captured"] == 0


def test_infer_signal_while_the_libraries_load_ends_it_quietly(trivial_bundle: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "import edge.cli\n"
        "class Early:\n"  # the first import after the handlers are set is where a signal hurts most
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'edge.config':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Early())\n"
        "sys.exit(edge.cli.main())\n"
    )
    arguments = ["--source", "demo", "--engine", str(trivial_bundle), "--publish", "tcp://127.0.0.1:*"]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "stopped by SIGINT" in done.stderr
    assert "Traceback" not in done.stderr
    assert "warning:" not in done.stderr
    assert "engine:" not in done.stderr


def test_infer_signal_ends_the_wait_for_a_pipe_that_nobody_writes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "edge.toml")
    program = (
        "import os, signal, sys\n"
        "import edge.cli, edge.config\n"
        "read = edge.config.read_config\n"
        "edge.config.read_config = lambda: (os.kill(os.getpid(), signal.SIGTERM), read())[1]\n"
        "sys.exit(edge.cli.main())\n"
    )
    arguments = ["--source", "demo", "--config", str(tmp_path / "edge.toml")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0
    assert done.stderr == "ended: stopped by SIGTERM\n"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_infer_log_on_a_full_disk_does_not_end_it(
    video: Path, trivial_bundle: Path, tmp_path: Path, log_format: str
) -> None:
    status = tmp_path / "status.json"
    command = [
        sys.executable,
        "-m",
        "edge.cli",
        "--source",
        str(video),
        "--engine",
        str(trivial_bundle),
        "--pace",
        "max",
    ]
    options = ["--publish", "tcp://127.0.0.1:*", "--log-format", log_format, "--status-file", str(status)]
    with Path("/dev/full").open("w") as full_disk:
        done = subprocess.run([*command, *options], stderr=full_disk, timeout=60, check=False)
    assert done.returncode == 0
    assert json.loads(status.read_text(encoding="utf-8"))["counters"]["published"] == 25


def test_infer_names_of_files_stay_on_their_line_and_escaped(video: Path, trivial_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "a\nerror: b\x1b[31m \u8d85.mp4"
    shutil.copy(video, path)
    daemon = run_command(
        *("--source", str(path), "--pace", "max", "--engine", str(trivial_bundle), "--publish", "tcp://127.0.0.1:*")
    )
    assert daemon.returncode == 0, daemon.stderr
    assert "\nsource: a error: b\\x1b[31m \u8d85.mp4\n" in daemon.stderr
    assert "\x1b" not in daemon.stderr


def test_infer_frames_are_the_roi_alone(video: Path, trivial_bundle: Path) -> None:
    recording = record(
        *("--source", str(video), "--engine", str(trivial_bundle), "--pace", "max"),
        *("--roi", "40,20,200,180", "--frames", "30"),
    )

    frames = recording.of("frame")
    assert [message.header["index"] for message in frames] == list(range(40))
    for message in frames:
        image = cv2.imdecode(np.frombuffer(message.buffers[0], np.uint8), cv2.IMREAD_UNCHANGED)
        assert image.shape[:2] == (180, 200)
        assert (message.header["width"], message.header["height"]) == (200, 180)
    # 16 of 256 pixels are cut off on each side
    assert recording.predictions[0]["heatmap"]["roi_px"] == [52, 31, 175, 158]


def test_infer_status_file_holds_the_last_status(video: Path, trivial_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    recording = record(
        "--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--status-file", str(path)
    )

    assert json.loads(path.read_text()) == recording.messages[-1].header


def test_infer_json_log_is_json_on_every_line(video: Path, trivial_bundle: Path) -> None:
    recording = record("--source", str(video), "--engine", str(trivial_bundle), "--pace", "max", "--log-format", "json")

    levels = {json.loads(line)["level"] for line in recording.stderr.splitlines()}
    assert levels == {"info"}


def test_infer_demo_source_runs_in_realtime(trivial_bundle: Path) -> None:
    recording = record("--source", "demo", "--engine", str(trivial_bundle), "--max-windows", "20")

    assert recording.exit_code == 0
    assert len(recording.predictions) == 20
    assert recording.predictions[0]["window"]["last_index"] == 15


def _error_line(stderr: str) -> str:
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, stderr
    assert stderr.splitlines()[-1] == errors[0]
    return errors[0]


@pytest.mark.parametrize(
    ("arguments", "exit_code", "words"),
    [
        (["--source", "missing.mp4"], 3, "missing.mp4"),
        (["--source", "empty_folder"], 3, "empty_folder"),
        (["--source", "cut.mp4"], 3, "cut.mp4"),
        (["--source", "no_frames.mp4"], 3, "no_frames.mp4"),
        (["--source", "garbage.mp4"], 3, "garbage.mp4"),
        (["--source", "no_pixels.dcm"], 3, "no_pixels.dcm"),
        (["--source", "garbage.dcm"], 3, "garbage.dcm"),
        (["--source", "ftp://user:secret@host/x"], 2, "ftp"),
        ([], 2, "--source"),
        (["--source", "demo", "--roi", "300,200,100,100"], 2, "300,200,100,100"),
        (["--source", "demo", "--roi", "1,2,3"], 2, "1,2,3"),
        (["--source", "demo", "--roi", "1,2,0,10"], 2, "1,2,0,10"),
        (["--source", "demo", "--hop", "0"], 2, "--hop"),
        (["--source", "demo", "--hop", "two"], 2, "--hop"),
        (["--source", "demo", "--pace", "fast"], 2, "realtime, max"),
        (["--source", "demo", "--no-such-option"], 2, "--no-such-option"),
        (["--source", "demo", "--backend", "abacus"], 2, "abacus"),
        (["--source", "demo", "--stream", "a b"], 2, "a b"),
        (["--source", "demo", "--publish", "tcp://0.0.0.0:5599"], 2, "--curve"),
        (["--source", "demo", "--publish", "nowhere"], 2, "nowhere"),
        (["--source", "demo", "--curve", "no_keys", "--publish", "tcp://127.0.0.1:*"], 2, "edge-keygen"),
        (["--config", "unknown_key.toml"], 2, "colour"),
        (["--config", "wrong_type.toml"], 2, "hop"),
        (["--config", "broken.toml"], 2, "broken.toml"),
        (["--config", "missing.toml"], 2, "missing.toml"),
        (["--source", "demo", "--engine", "empty_folder"], 4, "manifest.json"),
        (["--source", "demo", "--engine", "file_missing"], 4, "model.onnx is missing"),
        (["--source", "demo", "--engine", "changed"], 4, "sha256"),
        (["--source", "demo", "--engine", "future"], 4, "schema_version 99"),
        (["--source", "demo", "--engine", "other_outputs"], 4, "probabilities differ"),
        (["--source", "demo", "--device", "ABACUS"], 4, "ABACUS"),
    ],
    ids=lambda value: " ".join(value)[-40:] if isinstance(value, list) else None,
)
def test_infer_bad_input_is_one_line_and_the_documented_exit_code(
    arguments: list[str], exit_code: int, words: str, bad_inputs: Path, trivial_bundle: Path
) -> None:
    defaults = ("--engine", str(trivial_bundle), "--publish", "tcp://127.0.0.1:*", "--max-windows", "1")
    done = run_command(*defaults, *arguments, cwd=bad_inputs)

    assert done.returncode == exit_code, done.stderr
    assert words in _error_line(done.stderr)
    assert "secret" not in done.stderr


def test_infer_address_in_use_exits_5(trivial_bundle: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        address = f"tcp://127.0.0.1:{holder.getsockname()[1]}"
        done = run_command("--source", "demo", "--engine", str(trivial_bundle), "--publish", address)

    assert done.returncode == 5
    assert address in _error_line(done.stderr)


def test_infer_help_fits_a_screen_and_shows_an_example() -> None:
    done = run_command("--help")

    assert done.returncode == 0
    assert len(done.stdout.splitlines()) <= 50
    assert "example: edge-infer" in done.stdout
    assert "not a medical device" in done.stdout


def test_infer_version_is_told_with_the_notice() -> None:
    done = run_command("--version")

    assert (done.returncode, done.stdout) == (
        0,
        f"edge-infer {__version__}. Research software, not a medical device.\n",
    )


@pytest.fixture(scope="module")
def bad_inputs(tmp_path_factory: pytest.TempPathFactory, trivial_bundle: Path) -> Path:
    """A folder of everything that can be wrong."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty_folder").mkdir()
    whole = write_video(folder / "whole.mp4", 30).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its index is at the end, so nothing can be read
    write_video(folder / "no_frames.mp4", 0)
    for name in ("garbage.mp4", "garbage.dcm"):
        (folder / name).write_bytes(np.random.default_rng(0).bytes(4096))
    dataset = pydicom.dcmread(pydicom.examples.get_path("ct"))
    del dataset.PixelData
    dataset.save_as(folder / "no_pixels.dcm")
    (folder / "unknown_key.toml").write_text('source = "demo"\ncolour = "red"\n')
    (folder / "wrong_type.toml").write_text('source = "demo"\nhop = "two"\n')
    (folder / "broken.toml").write_text("source = \n")
    _write_bad_bundles(folder, trivial_bundle)
    return folder


def _write_bad_bundles(folder: Path, bundle: Path) -> None:
    for name in ("file_missing", "changed", "future"):
        shutil.copytree(bundle, folder / name)
    (folder / "file_missing" / "model.onnx").unlink()
    model = bytearray((folder / "changed" / "model.onnx").read_bytes())
    model[len(model) // 2] ^= 1
    (folder / "changed" / "model.onnx").write_bytes(model)
    manifest = json.loads((folder / "future" / "manifest.json").read_text())
    (folder / "future" / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 99}))
    write_trivial_bundle(folder / "other_outputs", is_honest=False)
