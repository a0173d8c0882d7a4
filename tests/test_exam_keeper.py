"""Exams while they run: whose windows count, what they sum up to, and what outlives a daemon."""

import collections
import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from daemon import run_command as run
from daemon import running
from small_keeper import keeping

from edge.control_client import ControlClient
from edge.errors import ConfigError
from edge.exams.archive import ExamArchive
from edge.exams.statistics import LogitMean
from edge.exams.store import default_state_folder
from edge.prediction import State
from edge.wire import encode

DEADLINE_S = 60.0


def test_logit_mean_of_many_windows_stays_small_and_exact() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0.5, 2, 20_000)
    probabilities = 1 / (1 + np.exp(-logits))
    mean = LogitMean()
    for place, probability in enumerate(probabilities):
        mean.add(float(probability), first_index=place, last_index=place + 15)
    assert mean.num_windows == 20_000
    assert mean.probability == pytest.approx(1 / (1 + np.exp(-logits.mean())))
    assert 128 <= len(mean.sums) <= 256
    interval = mean.interval()
    assert interval is not None
    standard_error = 2 / np.sqrt(20_000)  # the windows are independent here
    expected = 1 / (1 + np.exp(-(logits.mean() + np.array([-1.96, 1.96]) * standard_error)))
    np.testing.assert_allclose(interval, expected, atol=0.003)


@pytest.mark.parametrize(("probability", "mean_logit"), [(0.0, -16), (1.0, 16)])
def test_logit_mean_of_a_sure_network_is_finite(probability: float, mean_logit: float) -> None:
    mean = LogitMean()
    mean.add(probability, first_index=0, last_index=15)
    assert mean.probability == pytest.approx(1 / (1 + np.exp(-mean_logit)))
    assert mean.interval() is None


def test_exam_counts_the_windows_that_hold_none_but_its_frames(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        small.num_captured = 100
        assert "exam" not in small.send(0.9, 84)
        exam = small.keeper.begin()
        assert "exam" not in small.send(0.9, 99)  # its first frame is the patient's before
        header = small.send(0.2, 100)
        assert header["exam"] == {"id": exam["id"], "started_wall_ns": exam["started_wall_ns"]}
        small.send(0.4, 101)
        summary = small.keeper.end()
        assert "exam" not in small.send(0.9, 102)
        logits = np.log([0.2 / 0.8, 0.4 / 0.6])
        assert summary["num_windows"] == 2
        assert summary["probability"] == pytest.approx(1 / (1 + np.exp(-logits.mean())))
        assert (summary["positive"], summary["finding"]) == (False, "metastasis")
        assert small.keeper.summary(with_keyframes=False) == summary


def test_exam_goes_on_without_a_message_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
        small.keeper.tap(encode("prediction", {"v": 1, "stream": "main", "classes": ["x" * 5000]}))
        small.send(0.2, 0)
        summary = small.keeper.summary(with_keyframes=False)
    assert summary is not None
    assert summary["num_windows"] == 1
    assert "an exam lacks a message of this daemon" in caplog.text


def test_exam_that_begins_ends_the_one_before(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        first, second = small.keeper.begin("left"), small.keeper.begin()
        assert first["id"] != second["id"]
        assert second["notes"] == []
        assert small.terms.exam is not None
        assert small.terms.exam.id == second["id"]
        assert small.num_told == 3  # begin, end, begin


def test_exam_keyframes_carry_their_own_picture_and_heatmap(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
        jpegs = [small.send_frame(index) for index in range(16)]
        small.send(0.7, 0)
        summary = small.keeper.summary(with_keyframes=True)
        assert summary is not None
        (keyframe,) = summary["keyframes"]
        assert keyframe["frame"]["index"] == 10  # where the heatmap has its peak
        assert keyframe["jpeg"] == jpegs[10]
        height, width = keyframe["heatmap"]["shape"]
        values = np.frombuffer(keyframe["heatmap"]["values"], np.uint8).reshape(height, width)
        row, column = np.unravel_index(values.argmax(), values.shape)
        assert (row * 7 // height, column * 7 // width) == (2, 5)
        assert values.max() > 245  # its own peak, but for the smoothing


def test_exam_keyframe_has_its_picture_although_both_come_while_others_are_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(collections.deque):  # type: ignore[type-arg]
        def popleft(self) -> object:
            taken = super().popleft()
            while coming:
                coming.pop()()
            return taken

    with keeping(tmp_path) as small:
        small.keeper.begin()
        monkeypatch.setattr(small.keeper, "_waiting_frames", Interrupted())
        coming = [lambda: small.send(0.7, 0), lambda: small.send_frame(10)]  # the last one first
        small.send_frame(9)
        for _ in range(2):
            summary = small.keeper.summary(with_keyframes=True)
        assert summary is not None
        assert [keyframe["frame"]["index"] for keyframe in summary["keyframes"]] == [10]


def test_exam_outlives_its_keeper_with_all_that_it_held(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin("left axilla")
        small.keeper.set_threshold(0.3)
        small.send_frame(10)
        small.send(0.7, 0)
        before = small.keeper.summary(with_keyframes=True)
    with keeping(tmp_path) as small:
        assert small.keeper.summary(with_keyframes=True) == before
        assert small.terms.threshold == 0.3
        assert "exam" in small.send(0.7, 0)  # a new daemon counts its frames anew
        after = small.keeper.end()
        assert before is not None
        assert (after["id"], after["num_windows"]) == (before["id"], 2)


def test_exam_that_has_ended_keeps_its_threshold(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
        small.keeper.set_threshold(0.3)
        small.send(0.4, 0)
        ended = small.keeper.end()
        small.keeper.set_threshold(0.9)  # of the next patient
        assert (ended["threshold"], ended["positive"]) == (0.3, True)
        assert small.keeper.summary(with_keyframes=False) == ended
    with keeping(tmp_path) as small:
        assert small.terms.threshold == 0.5  # the bundle's
        assert small.keeper.summary(with_keyframes=False) == ended


def test_exam_of_another_bundle_ends(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
    with keeping(tmp_path, bundle="cd" * 32) as small:
        assert small.terms.exam is None
        summary = small.keeper.summary(with_keyframes=False)
        assert summary is not None
        assert summary["ended_wall_ns"] is not None


def test_exam_that_nobody_kept_for_long_ends_when_it_was_left(tmp_path: Path) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
    path = tmp_path / "main.exam.json"
    state = json.loads(path.read_text())
    state["saved_wall_ns"] -= 3600 * 10**9
    path.write_text(json.dumps(state))
    with keeping(tmp_path) as small:
        summary = small.keeper.summary(with_keyframes=False)
        assert summary is not None
        assert small.terms.exam is None
        assert abs(summary["ended_wall_ns"] - state["saved_wall_ns"]) < 5e9


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"exam": {}}', b'{"exam": 3, "mean": {}}', b"\xff"])
def test_state_that_is_damaged_is_told_and_left(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "main.exam.json").write_bytes(content)
    with keeping(tmp_path) as small:
        assert small.keeper.summary(with_keyframes=True) is None
        assert "cannot be read" in caplog.text
        small.keeper.begin()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(threshold=10**400),
        lambda state: state.update(saved_wall_ns=float("inf")),
        lambda state: state["exam"].update(ended_wall_ns="yesterday"),
        lambda state: state["mean"].update(sums=[0.5], counts=[]),
    ],
)
def test_state_that_somebody_changed_is_told_and_left(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], caplog: pytest.LogCaptureFixture
) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
    path = tmp_path / "main.exam.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    with keeping(tmp_path) as small:
        assert small.keeper.summary(with_keyframes=True) is None
        assert "cannot be read" in caplog.text


def test_state_of_absurd_depth_is_told_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "main.exam.json").write_bytes(b"[" * 200_000)
    with keeping(tmp_path) as small:
        assert small.keeper.summary(with_keyframes=True) is None
        assert "cannot be read" in caplog.text


def test_keyframes_that_are_damaged_are_told_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
    (tmp_path / "main.keyframes").write_bytes(b"\x81\xa2id")
    with keeping(tmp_path) as small:
        assert small.terms.exam is not None
        assert "keyframes" in caplog.text


def test_state_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    with keeping(tmp_path / "state") as small:
        small.keeper.begin()
        modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "state").iterdir()}
    assert modes == {0o600}
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_state_of_a_stream_that_another_daemon_keeps_is_refused(tmp_path: Path) -> None:
    with keeping(tmp_path), pytest.raises(ConfigError, match="another edge-infer keeps"), keeping(tmp_path):
        pass
    with keeping(tmp_path):  # and free again
        pass


def test_state_folder_that_goes_away_is_told_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    with keeping(folder) as small:
        small.keeper.begin()
        folder.rename(tmp_path / "gone")
        small.keeper.note("one")
        small.keeper.note("two")
        small.send(0.7, 0)
        assert small.keeper.end()["num_windows"] == 1
    assert caplog.text.count("would not outlive the daemon") == 1


def test_exam_that_is_not_saved_is_told_until_it_is(tmp_path: Path, trivial_bundle: Path) -> None:
    folder, control = tmp_path / "state", f"ipc://{tmp_path}/control"
    options = ["--source", "phantom:3", "--engine", str(trivial_bundle), "--control", control, "--state", str(folder)]
    with running(*options) as daemon, ControlClient(control, timeout_s=DEADLINE_S) as client:
        daemon.receive("prediction")
        client.ask("exam-start")
        assert daemon.receive("status").header["exam_trouble"] is None
        folder.rename(tmp_path / "gone")
        trouble = os.strerror(errno.ENOENT)
        _wait_for(lambda: daemon.receive("status").header["exam_trouble"] == trouble)
        watched = run("--connect", daemon.address, "--count", "60", module="edge.watch.cli")
        assert f"the exam is not saved: {trouble}" in watched.stdout
        exam = client.ask("exam-stop")["exam"]  # what has ended is tried again as well
        (tmp_path / "gone").rename(folder)
        _wait_for(lambda: daemon.receive("status").header["exam_trouble"] is None)
        assert json.loads((folder / "main.exam.json").read_text())["exam"]["ended_wall_ns"] == exam["ended_wall_ns"]


def test_keyframes_that_were_not_saved_are_tried_again(tmp_path: Path) -> None:
    in_the_way = tmp_path / "main.keyframes"
    in_the_way.mkdir()
    with keeping(tmp_path) as small:
        small.keeper.begin()
        assert small.terms.exam_trouble == os.strerror(errno.EISDIR)
        _wait_for(lambda: (tmp_path / "main.exam.json").stat().st_mtime_ns > in_the_way.stat().st_mtime_ns + 10**9)
        assert small.terms.exam_trouble == os.strerror(errno.EISDIR)  # what can be saved does not hide it
        in_the_way.rmdir()
        _wait_for(in_the_way.is_file)
        _wait_for(lambda: small.terms.exam_trouble is None)


def test_exam_that_is_not_described_beside_its_recording_is_told(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.write_text("no folder")
    with keeping(tmp_path / "state", archive=ExamArchive(recording, None)) as small:
        exam = small.keeper.begin()
        assert small.terms.exam_trouble == os.strerror(errno.ENOTDIR)
        recording.unlink()
        _wait_for(lambda: small.terms.exam_trouble is None)
        assert json.loads((recording / "exams" / exam["id"] / "exam.json").read_text())["ended_wall_ns"] is None


def test_state_folder_is_what_the_system_gives() -> None:
    assert default_state_folder({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}) == Path("/var/lib/a")
    assert default_state_folder({"XDG_STATE_HOME": "/x"}) == Path("/x/edge-ultrasound")
    assert default_state_folder({}) == Path.home() / ".local/state/edge-ultrasound"


@pytest.mark.parametrize("text", ["", "   ", "x" * 501, 3, None, b"bytes", ["a"]])
def test_note_that_is_none_is_refused(tmp_path: Path, text: object) -> None:
    with keeping(tmp_path) as small:
        small.keeper.begin()
        with pytest.raises(ConfigError, match="1 to 500 characters"):
            small.keeper.note(text)


def test_note_without_an_exam_is_refused(tmp_path: Path) -> None:
    with keeping(tmp_path) as small, pytest.raises(ConfigError, match="no exam is open"):
        small.keeper.note("left")


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan"), "0.5", None, True, 10**18])
def test_threshold_that_is_none_is_refused(tmp_path: Path, threshold: object) -> None:
    with keeping(tmp_path) as small, pytest.raises(ConfigError, match="from 0 to 1"):
        small.keeper.set_threshold(threshold)


def _wait_for(condition: object) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline_s, "it did not come true"
        time.sleep(0.02)


@pytest.mark.parametrize("state", [State.FROZEN, State.NO_SIGNAL])
def test_auto_exam_ends_with_a_pause_and_begins_with_the_next_image(tmp_path: Path, state: State) -> None:
    with keeping(tmp_path, auto_pause_s=0.2) as small:
        small.send(0.7, 0)
        _wait_for(lambda: small.terms.exam is not None)
        first = small.terms.exam
        t_before_ns = time.time_ns()
        small.send_status(state)
        small.keeper.last_status()  # taken in now
        t_after_ns = time.time_ns()
        small.send_status(State.WARMUP)  # tries to begin, and stands again
        _wait_for(lambda: small.terms.exam is None)
        summary = small.keeper.summary(with_keyframes=False)
        assert summary is not None
        assert t_before_ns <= summary["ended_wall_ns"] <= t_after_ns  # not when it was found to last
        small.send(0.7, 100)
        _wait_for(lambda: small.terms.exam is not None)
        assert first is not None
        assert small.terms.exam is not None
        assert small.terms.exam.id != first.id


def test_auto_exam_outlasts_a_short_pause(tmp_path: Path) -> None:
    with keeping(tmp_path, auto_pause_s=3600.0) as small:
        small.send(0.7, 0)
        _wait_for(lambda: small.terms.exam is not None)
        exam = small.terms.exam
        small.send_status(State.FROZEN)
        small.send(0.7, 100)
        assert small.keeper.summary(with_keyframes=False) is not None
        assert small.terms.exam is exam


def test_whole_run_is_an_exam_of_its_own_each_time(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        archive = ExamArchive(tmp_path / "recording", "PACS@127.0.0.1:104")
        with keeping(tmp_path / "state", archive=archive, is_whole_run=True) as small:
            assert small.terms.exam is not None
            ids.append(small.terms.exam.id)
            small.send(0.7, 0)  # the first daemon is killed: its exam stays open
    assert archive.unsent() == [ids[0]]
    assert ids[0] != ids[1]


def test_exam_survives_a_killed_daemon(tmp_path: Path, trivial_bundle: Path) -> None:
    control = f"ipc://{tmp_path}/control"
    options = ["--source", "phantom:3", "--frames", "30", "--engine", str(trivial_bundle), "--record"]
    options += [str(tmp_path / "recording"), "--control", control, "--state", str(tmp_path / "state")]
    with running(*options) as daemon, ControlClient(control, timeout_s=DEADLINE_S) as client:
        daemon.receive("prediction")
        exam = client.ask("exam-start", note="left axilla")["exam"]
        path = tmp_path / "state" / "main.exam.json"
        _wait_for(lambda: json.loads(path.read_text())["exam"]["num_windows"] >= 5)
        daemon.signal(signal.SIGKILL)
        told = {message.header["exam"]["id"] for message in daemon.finish().messages if message.header.get("exam")}
        assert told == {exam["id"]}
    num_kept = json.loads(path.read_text())["exam"]["num_windows"]

    with running(*options) as daemon, ControlClient(control, timeout_s=DEADLINE_S) as client:
        assert daemon.receive("prediction").header["exam"]["id"] == exam["id"]
        client.ask("threshold", threshold=1.0)
        _wait_for(lambda: daemon.receive("prediction").header["threshold"] == 1.0)
        assert daemon.messages[-1].header["positive"] is False
        so_far = client.ask("exam")["exam"]
        assert so_far["num_windows"] > num_kept
        assert so_far["keyframes"]
        ended = client.ask("exam-stop")["exam"]
        _wait_for(lambda: daemon.receive("status").header["exam"] is None)
        daemon.signal(signal.SIGTERM)
        assert daemon.finish().exit_code == 0
    done = run(str(tmp_path / "recording"), "--exam", exam["id"], module="edge.report.cli")
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "recording" / "exams" / exam["id"] / "report" / "summary.json").read_text())
    assert facts["notes"] == ["left axilla"]
    # the recording lost nothing; the keeper what came in the last second before the kill
    assert ended["num_windows"] <= facts["num_windows"] <= ended["num_windows"] + 60
