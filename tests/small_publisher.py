"""A real publisher for tests of readers: ZeroMQ and `edge.wire`, with no daemon behind it."""

import time
from typing import Any, Self

import cv2
import numpy as np
import zmq

from edge import wire
from edge.prediction import Latency, Prediction, State
from edge.window import Window
from edge.wire import StreamIdentity
from engines import EngineSpec

ENGINE = EngineSpec("small", "ab" * 32, "openvino", "fp32", "CPU", (16, 1, 224, 224), ("benign", "metastasis"))
DEADLINE_MS = 10_000
ROI = (40, 20, 224, 224)


class SmallPublisher:
    """Binds to a port of its own; sends what the test says."""

    def __init__(self, address: str = "tcp://127.0.0.1:*", stream: str = "main") -> None:
        self.stream = stream
        self.seq = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self._context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self.socket.linger = 1000
        self.socket.bind(address)
        self.address = str(self.socket.get_string(zmq.LAST_ENDPOINT))
        self._identity = StreamIdentity(stream, ENGINE.classes, 0.5, ENGINE)

    def wait_for_subscriptions(self, number: int = 1) -> None:
        """Wait for this many topics to be subscribed to."""
        while number > 0:
            assert self.socket.poll(DEADLINE_MS), "no subscriber came"
            number -= self.socket.recv()[:1] == b"\x01"

    def wait_for_leaving(self) -> None:
        while self.socket.poll(DEADLINE_MS):
            if self.socket.recv()[:1] == b"\x00":
                return
        raise AssertionError("no subscriber left")

    def prediction_header(self, probability: float = 0.75, age_ms: float = 20.0, **changes: Any) -> wire.Header:
        """Return the next prediction's header, as the daemon makes it, with changes."""
        now_ns = time.monotonic_ns() - round(age_ms * 1e6)
        prediction = Prediction(
            window=Window(self.seq, self.seq + 15, 600.0, 40.0),
            num_skipped=0,
            probabilities=np.array([1 - probability, probability], np.float32),
            heatmap=heatmap(),
            visible_rect=ROI,
            t_capture_ns=now_ns,
            t_wall_ns=time.time_ns(),
            latency_ms=Latency(capture=0.5, preprocess=1.0, queue=0.1, infer=12.0),
        )
        header = wire.prediction_header(prediction, self._identity, self.seq, wire.boot_id())
        header["latency_ms"]["total"] = 14.0
        self.seq += 1
        return {**header, **changes}

    def send_prediction(self, probability: float = 0.75, age_ms: float = 20.0, **changes: Any) -> wire.Header:
        header = self.prediction_header(probability, age_ms, **changes)
        self.socket.send_multipart(wire.encode("prediction", header, wire.heatmap_buffer(heatmap())))
        return header

    def send_status(self, state: State = State.LIVE, reason: str = "", **changes: Any) -> wire.Header:
        header: wire.Header = {
            "v": 1,
            "stream": self.stream,
            "state": str(state),
            "reason": reason,
            "counters": {"captured": 40, "skipped": 0, "inferred": self.seq, "published": self.seq, "reconnects": 0},
            "latency_ms": {"p50": 13.0, "p95": 15.0, "p99": 16.5, "max": 21.0},
            "fps": 25.0,
            "uptime_s": 12.5,
            "source": "demo",
            "engine": wire.engine_header(ENGINE),
            "version": "0.1.0",
            **changes,
        }
        self.socket.send_multipart(wire.encode("status", header))
        return header

    def send_frame(self, index: int, *, num_padding_bytes: int = 0, **changes: Any) -> wire.Header:
        """Send a frame: a gray ramp with a bright square, at `ROI`'s place with a margin of 20 pixels around it.

        Args:
            index: Of the frame.
            num_padding_bytes: More bytes behind the image, which its readers leave alone.
            **changes: To the header.
        """
        width, height = ROI[2] + 40, ROI[3] + 40
        image = np.tile(np.linspace(0, 120, width).astype(np.uint8), (height, 1))
        image[100:140, 100:140] = 220
        header: wire.Header = {
            "v": 1,
            "stream": self.stream,
            "index": index,
            "t_capture_ns": time.monotonic_ns(),
            "t_wall_ns": time.time_ns(),
            "width": width,
            "height": height,
            "encoding": "jpeg",
            "roi_px": [ROI[0] - 20, ROI[1] - 20, width, height],
            **changes,
        }
        jpeg = bytes(cv2.imencode(".jpg", image)[1].data) + bytes(num_padding_bytes)
        self.socket.send_multipart(wire.encode("frame", header, jpeg))
        return header

    def close(self) -> None:
        self.socket.close()
        self._context.term()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def heatmap() -> np.ndarray:
    """Return (16, 7, 7) float32 with its peak, 4.0, in frame 10, row 2, column 5."""
    values = np.zeros((16, 7, 7), np.float32)
    values[8:13, 1:4, 4:7] = 1.0
    values[10, 2, 5] = 4.0
    return values
