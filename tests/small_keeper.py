"""An exam keeper for tests, fed with messages as the publisher sends them."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from small_publisher import ENGINE, ROI, heatmap

from edge import wire
from edge.exams.archive import ExamArchive
from edge.exams.keeper import ExamKeeper, KeeperSettings
from edge.exams.store import ExamStore
from edge.prediction import Latency, Prediction, State
from edge.terms import Terms
from edge.window import Window
from edge.wire import StreamIdentity

BUNDLE = "ab" * 32


class SmallKeeper:
    """A keeper and the stream that it taps."""

    def __init__(self, folder: Path, *, archive: ExamArchive | None = None, bundle: str = BUNDLE, **changes: object):
        self.terms = Terms(0.5)
        self.num_captured = 0
        self.num_told = 0
        self._seq = 0
        self._store = ExamStore(folder, "main")
        settings = KeeperSettings(stream="main", bundle_sha256=bundle, finding="metastasis", **changes)  # type: ignore[arg-type]
        self.keeper = ExamKeeper(
            settings,
            self.terms,
            self._store,
            archive,
            num_captured=lambda: self.num_captured,
            tell_status=self._count,
        )
        self.keeper.start()

    def send(self, probability: float, first_index: int) -> wire.Header:
        """Publish the prediction of the window of 16 frames that begins there."""
        prediction = Prediction(
            window=Window(first_index, first_index + 15, 600.0, 40.0),
            num_skipped=0,
            probabilities=np.array([1 - probability, probability], np.float32),
            heatmap=heatmap(),
            visible_rect=ROI,
            t_capture_ns=(first_index + 15) * 40_000_000,
            t_wall_ns=time.time_ns(),
            latency_ms=Latency(capture=0.5, preprocess=1.0, queue=0.1, infer=12.0),
        )
        identity = StreamIdentity("main", ENGINE.classes, self.terms.threshold, ENGINE, self.terms.exam)
        header = wire.prediction_header(prediction, identity, self._seq, wire.boot_id())
        header["latency_ms"]["total"] = 14.0
        self._seq += 1
        self.keeper.tap(wire.encode("prediction", header, wire.heatmap_buffer(prediction.heatmap)))
        return header

    def send_frame(self, index: int) -> bytes:
        """Publish a picture, each of another gray."""
        image = np.full((ROI[3], ROI[2]), index % 256, np.uint8)
        jpeg = bytes(cv2.imencode(".jpg", image)[1].data)
        header = {"v": 1, "stream": "main", "index": index, "encoding": "jpeg", "roi_px": list(ROI)}
        header |= {"t_capture_ns": index * 40_000_000, "t_wall_ns": index * 40_000_000}
        self.keeper.tap(wire.encode("frame", header, jpeg))
        return jpeg

    def send_status(self, state: State, **changes: object) -> None:
        header = {"v": 1, "stream": "main", "state": str(state), "reason": "", "counters": {}, **self.terms.header()}
        self.keeper.tap(wire.encode("status", {**header, **changes}))

    def close(self, *, ends_exam: bool = False) -> None:
        self.keeper.close(ends_exam=ends_exam)
        self._store.close()

    def _count(self) -> None:
        self.num_told += 1


@contextlib.contextmanager
def keeping(folder: Path, **changes: object) -> Iterator[SmallKeeper]:
    """Open a keeper, and close it as a daemon does that is stopped."""
    keeper = SmallKeeper(folder, **changes)  # type: ignore[arg-type]
    try:
        yield keeper
    finally:
        keeper.close()
