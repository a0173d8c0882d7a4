"""Over RTSP, from a picture to the publication of what the network says of it: told by a burned-in number."""

import contextlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from daemon import RunningDaemon
from rtsp_server import RtspServer, number_of

from edge import wire

NUM_WINDOWS = 300
MAX_MEDIAN_MS = 500.0
"""Far above what is usual: a player that waits for a buffer to fill, as many do, takes a second and more."""


def _number(message: wire.Message) -> int:
    image = cv2.imdecode(np.frombuffer(message.buffers[0], np.uint8), cv2.IMREAD_GRAYSCALE)
    assert image is not None
    return number_of(image)


def _tell(what: str, values_ms: list[float]) -> None:
    p50, p95, p99 = np.percentile(values_ms, (50, 95, 99))
    print(f"\nRTSP, picture {what}: p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms of {len(values_ms)} windows", end="")


@pytest.mark.slow
def test_rtsp_from_the_picture_made_to_the_prediction_published(
    trivial_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(RtspServer()) as server:
        daemon = RunningDaemon(
            "--source", server.url, "--engine", str(trivial_bundle), "--roi", "full", "--frames", "30",
            "--max-windows", str(NUM_WINDOWS),
        )  # fmt: skip
        try:
            recording = daemon.finish()
        finally:
            daemon.close()
        t_made_ns = dict(server.sender.t_sent_ns)
    numbers = {message.header["index"]: _number(message) for message in recording.of("frame")}
    indices = sorted(numbers)
    assert [numbers[index] for index in indices] == sorted(numbers.values())
    whole_ms, ours_ms = [], []
    for header in recording.predictions:
        number = numbers.get(header["window"]["last_index"])
        if number is not None:
            total_ms = header["latency_ms"]["total"]
            ours_ms.append(total_ms - header["latency_ms"]["infer"])
            whole_ms.append((header["t_capture_ns"] - t_made_ns[number]) / 1e6 + total_ms)
    assert len(whole_ms) > NUM_WINDOWS / 2
    with capsys.disabled():
        _tell("made to published", whole_ms)
        _tell("received to published, less the engine", ours_ms)
    assert min(whole_ms) > 0
    assert np.median(whole_ms) < MAX_MEDIAN_MS
