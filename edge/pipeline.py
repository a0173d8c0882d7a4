"""The supervisor: wires source, capture, inference and publisher, and ends them together."""

import contextlib
import logging
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge import wire
from edge.capture import CaptureLoop, CaptureSettings
from edge.config import Config
from edge.errors import EdgeError, EngineError, SourceError, SourceLost
from edge.frame import Frame
from edge.health.heartbeat import Heart, RestartBudget, stuck_heart
from edge.health.meters import Meters
from edge.health.status import StatusReport
from edge.health.stream_state import StreamState
from edge.health.systemd import Notifier
from edge.inference import ClipQueue, InferenceLoop
from edge.prediction import Prediction, State
from edge.publish import STATUS_INTERVAL_S, Publisher
from edge.reconnect import play_through_losses
from edge.roi import parse_masks, parse_roi
from edge.sources.base import Rect, Source
from edge.terms import Terms
from edge.tuning import parse_tuning
from engines import Bundle, Engine, load_engine

if TYPE_CHECKING:
    from edge.recording.recorder import Recorder  # a heavy one, that most runs do without

_log = logging.getLogger(__name__)

_JOIN_S = 1.0
_CAPTURE_LIMIT_S, _INFERENCE_LIMIT_S, _PUBLISH_LIMIT_S = 10.0, 30.0, 10.0
"""How long a stage may work without a sign of life: sources give one every second, the publisher too."""
_MAX_RESTARTS, _RESTART_SPAN_S = 3, 600.0
_ERRORS: dict[str, type[EdgeError]] = {"capture": SourceError, "inference": EngineError}
"""By the stage that is stuck or dies again and again."""
_SOURCE_ENDED = "the source ended"


class Pipeline:
    """One stream from its source to its subscribers.

    Threads: `capture` owns the source, `inference` the engine, `publish` (in `Publisher`) the socket. The thread that
    calls `run` supervises: it starts them, waits for the first to fail or the stream to end, and joins them.
    """

    def __init__(
        self,
        config: Config,
        bundle: Bundle,
        source: Source,
        publisher: Publisher,
        meters: Meters,
        recorder: "Recorder | None" = None,
        terms: Terms | None = None,
    ) -> None:
        self._config = config
        self._bundle = bundle
        self._source = source
        self._publisher = publisher
        self._meters = meters
        self._terms = terms or Terms(bundle.threshold)
        self._recorder = recorder
        # objects that were sent wait on disk; all else that is live does not wait
        can_wait = not source.info.is_live or source.info.plays_objects
        self._is_lossless = config.pace == "max" and can_wait
        self._queue = ClipQueue(bundle.num_frames, config.hop, is_lossless=self._is_lossless)
        self._stop = threading.Event()
        self._wake_fd, self._waker_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._is_engine_ready = threading.Event()
        self._stop_reason: str | None = None
        self._is_hurried = False
        self._failure: Exception | None = None
        self._loss: EdgeError | None = None
        self._deadline_s = math.inf
        self._num_ended = 0
        self._ended = threading.Lock()
        self._states = StreamState(publisher.set_state)
        path = Path(config.status_file) if config.status_file else None
        self._status = StatusReport(config.stream, source.info.public_name, meters, self._terms, path, recorder)
        is_watched = source.info.is_live and not self._is_lossless  # a recording may rest for as long as it likes
        self._capture_heart = Heart("capture", _CAPTURE_LIMIT_S if is_watched else math.inf)
        self._inference_heart = Heart("inference", _INFERENCE_LIMIT_S)
        self._publish_heart = Heart("publish", _PUBLISH_LIMIT_S)
        self._hearts = (self._capture_heart, self._inference_heart, self._publish_heart)
        self._budgets = {name: RestartBudget(_MAX_RESTARTS, _RESTART_SPAN_S) for name in ("capture", "inference")}
        self._capture: CaptureLoop | None = None
        self._notifier = Notifier()

    def run(self) -> None:
        """Play the stream to its end, or until `stop`.

        Raises:
            EdgeError: What ended the stream, if not its end.
        """
        threads = [
            threading.Thread(target=self._work, args=(self._inference_thread,), name="inference"),
            threading.Thread(target=self._work, args=(self._capture_thread,), name="capture"),
        ]
        if self._stop_reason is not None:
            threads = []  # stopped while all was opened: no engine is loaded for nothing
        if self._recorder is not None:
            self._publisher.taps.append(self._recorder.add_message)
        self._publisher.start(self._status_header, self._guard)
        for thread in threads:
            thread.start()
        with _woken_by_signals(self._waker_fd):
            self._supervise(threads)
        self._failure = self._failure or self._loss
        self._end(threads)
        if self._failure is not None:
            raise self._failure
        self._status.log_end(
            self._stop_reason or _SOURCE_ENDED,
            is_stopped=self._stop_reason is not None,
            num_needed=self._bundle.num_frames,
        )

    def stop(self, reason: str) -> None:
        """Ask the stream to end at once. Takes no lock, so that a signal handler may call it."""
        self._is_hurried = True
        self._finish(reason)

    @property
    def was_stopped(self) -> bool:
        """Whether someone ended the stream, and not the stream itself."""
        return self._is_hurried

    def _finish(self, reason: str) -> None:
        self._stop_reason = self._stop_reason or reason
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: the stream has ended already
            os.write(self._waker_fd, b"\0")

    def _supervise(self, threads: list[threading.Thread]) -> None:
        while self._num_ended < len(threads) and self._stop_reason is None and self._failure is None:
            remaining_s = self._deadline_s - time.monotonic()
            if remaining_s <= 0:
                self._finish(f"--duration {self._config.duration:g} s is over")
                return
            interval_s = min(STATUS_INTERVAL_S, self._notifier.interval_s or STATUS_INTERVAL_S)
            select.select([self._wake_fd], [], [], min(remaining_s, interval_s))
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_fd, 4096)
            self._status.write_file()
            self._check_hearts()

    def _check_hearts(self) -> None:
        """Tell systemd that all stages live, or end the stream: a thread that is stuck cannot be started again."""
        heart = stuck_heart(self._hearts)
        if heart is None:
            self._notifier.alive(self._status.words)
        else:
            error = _ERRORS.get(heart.stage, EdgeError)
            self._failure = error(f"the {heart.stage} has not moved for {heart.limit_s:g} s; start edge-infer anew")

    def _end(self, threads: list[threading.Thread]) -> None:
        """Wake every wait, join, and publish the last status."""
        self._notifier.stopping()
        self._stop.set()
        self._queue.finish(discard=True)
        self._source.close()
        self._publisher.interrupt_wait()
        self._is_engine_ready.set()
        deadline_s = time.monotonic() + _JOIN_S
        for thread in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                _log.warning("thread %s did not end within %g s", thread.name, _JOIN_S)
        last_word = (State.NO_SIGNAL, self._stop_reason or _SOURCE_ENDED)
        if self._failure is not None:
            last_word = (State.FAULT, self._public(self._failure))
        if not self._publish_heart.is_stuck:
            self._publisher.close(*last_word, is_patient=self._is_lossless and not self._is_hurried)
        self._status.write_file()
        for fd in (self._wake_fd, self._waker_fd):
            os.close(fd)

    def _work(self, body: Callable[[], None]) -> None:
        """Run the body of capture or inference: when one ends, the other is let run dry."""
        try:
            self._guard(body)
        finally:
            self._queue.finish()
            with self._ended:
                self._num_ended += 1
            self._wake()

    def _guard(self, body: Callable[[], None]) -> None:
        """Run a thread's body; keep what ends it, so that the supervisor can say it."""
        try:
            body()
        except Exception as exc:
            if self._failure is None and not (self._stop.is_set() and isinstance(exc, EdgeError)):
                self._failure = exc
            self._wake()

    def _status_header(self, state: State, reason: str) -> wire.Header:
        self._publish_heart.beat()  # asked for every second
        return self._status.header(state, reason)

    def _capture_thread(self) -> None:
        self._is_engine_ready.wait()
        self._publisher.wait_for_subscribers(self._config.wait_subscribers, self._stop.is_set)
        if self._stop.is_set():
            return
        if self._config.duration is not None:
            self._deadline_s = time.monotonic() + self._config.duration
            self._wake()
        settings = CaptureSettings(
            roi=parse_roi(self._config.roi),
            preprocess=self._bundle.preprocess,
            num_frames=self._bundle.num_frames,
            frame_interval_ms=self._bundle.frame_interval_ms,
            hop=self._config.hop,
            is_realtime=self._config.pace == "realtime",
            frames_hz=self._config.frames,
            masks=parse_masks(self._config.mask),
            image=self._config.image_thresholds(),
        )
        loop = CaptureLoop(
            self._source,
            self._queue,
            self._meters,
            settings,
            stop=self._stop,
            on_frame=self._publish_frame,
            on_interruption=self._interrupt,
            on_roi_frame=self._recorder.add_frame if self._recorder else None,
            heart=self._capture_heart,
        )
        self._capture = loop
        try:
            self._play(loop)
        except EdgeError as exc:
            self._loss = exc  # not yet a failure: what came before it is still worth its predictions
        finally:
            self._capture_heart.rest()

    def _play(self, loop: CaptureLoop) -> None:
        """Play the source; a live one as often as it is lost and comes back."""

        def tell(loss: SourceLost) -> None:
            self._meters.count("losses")
            loop.lose(State.FAULT if loss.is_fault else State.NO_SIGNAL, self._public(loss))

        def play() -> None:
            try:
                loop.run()
            except EdgeError:
                raise
            except Exception as exc:
                self._restart_or_raise("capture", exc)
                raise SourceLost(f"the capture died of {type(exc).__name__}", is_fault=True) from exc

        play_through_losses(play, tell, self._stop, lambda: self._meters.counters["captured"])

    def _interrupt(self, state: State, reason: str, is_end: bool) -> int | None:
        if (self._is_lossless or is_end) and not self._queue.drain():
            return None
        return self._states.interrupt(state, reason)

    def _public(self, exc: Exception) -> str:
        """Return an error's text for the wire: a file's name may hold a patient's."""
        return str(exc).replace(self._source.info.name, self._source.info.public_name)

    def _restart_or_raise(self, stage: str, exc: Exception) -> None:
        """Return where a stage that died is to start again: where the stream goes on without it.

        Raises:
            EdgeError: It died too often.
            Exception: The stream does not wait for it.
        """
        if not self._source.info.is_live or self._stop.is_set():
            raise exc
        what = f"the {stage} died of {type(exc).__name__}"
        if not self._budgets[stage].take():
            raise _ERRORS[stage](f"{what} again and again ({exc}); see the log, and report this as a bug") from exc
        _log.error("%s (%s) and starts again", what, exc)
        self._meters.count("restarts")

    def _inference_thread(self) -> None:
        first_epoch = 0
        while True:
            engine = load_engine(
                self._bundle,
                self._config.backend,
                self._config.device,
                self._config.precision,
                is_for_throughput=self._is_lossless,
                **parse_tuning(self._config.tune or ""),
            )
            try:
                return self._run_engine(engine, first_epoch)
            except Exception as exc:
                if self._capture is None:
                    raise
                self._restart_or_raise("inference", exc)
                # windows that the capture has begun need frames that the new engine has not seen
                first_epoch = self._states.epoch + 1
                self._capture.ask_interruption(f"the inference died of {type(exc).__name__}")
            finally:
                self._inference_heart.rest()
                engine.close()

    def _run_engine(self, engine: Engine, first_epoch: int) -> None:
        spec = self._status.engine = engine.spec
        _log.info("engine: %s on %s %s %s, parity passed", spec.name, spec.backend, spec.device, spec.precision)

        def publish(prediction: Prediction) -> None:
            identity = wire.StreamIdentity.of(self._config.stream, self._bundle, spec, self._terms)
            self._publisher.publish_prediction(prediction, identity=identity)

        if self._recorder is not None:
            self._recorder.note(engine=wire.engine_header(spec))
        self._states.tell(0, State.WARMUP, f"waiting for {self._bundle.num_frames} frames")
        self._is_engine_ready.set()
        self._notifier.ready()
        loop = InferenceLoop(
            engine,
            self._queue,
            self._meters,
            is_lossless=self._is_lossless,
            on_prediction=publish,
            states=self._states,
            heart=self._inference_heart,
            first_epoch=first_epoch,
        )
        if loop.run(self._config.max_windows) == self._config.max_windows:
            self._finish(f"--max-windows {self._config.max_windows} is reached")

    def _publish_frame(self, frame: Frame, roi: Rect, jpeg: bytes) -> None:
        header: wire.Header = {
            "v": wire.VERSION,
            "stream": self._config.stream,
            "index": frame.index,
            "t_capture_ns": frame.t_capture_ns,
            "t_wall_ns": frame.t_wall_ns,
            "width": roi[2],
            "height": roi[3],
            "encoding": "jpeg",
            "roi_px": list(roi),
        }
        self._publisher.publish_frame(header, jpeg)


@contextlib.contextmanager
def _woken_by_signals(fd: int) -> Iterator[None]:
    """Let a signal write to a descriptor, so that one that comes just before a wait begins ends that wait too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.set_wakeup_fd(fd, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
