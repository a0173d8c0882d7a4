"""The subscriber of the pipeline bench: a process of its own that reports what it received."""

import json
import signal
import threading
from types import FrameType

from edge.client import Subscriber
from edge.commandline import Parser, run_command
from edge.messages import PredictionMessage, StatusMessage

_TICK_S = 0.2


def main() -> int:
    """Run `python -m tools.bench.subscriber ADDRESS`; the last line on stdout is its report."""
    return run_command(_run)


def _run() -> int:
    parser = Parser("bench_subscriber", "Receive until the daemon ends; what edge-bench starts.", "edge-bench pipeline")
    parser.add_argument("address")
    address = parser.parse_args().address
    stop = _stop_event()
    predictions: list[dict[str, object]] = []
    status: StatusMessage | None = None
    with Subscriber(address) as subscriber:
        print("ready", flush=True)
        while not stop.is_set():
            message = subscriber.receive(_TICK_S)
            if isinstance(message, PredictionMessage):
                if not predictions:
                    print("first", flush=True)
                predictions.append(_entry(message))
            elif isinstance(message, StatusMessage):
                status = message
            elif subscriber.has_ended:
                break
        report = {
            "predictions": predictions,
            "status": status.header if status else None,
            "num_lost": subscriber.num_lost,
            "num_malformed": subscriber.num_malformed,
        }
    print(json.dumps(report))
    return 0


def _entry(message: PredictionMessage) -> dict[str, object]:
    return {
        "seq": message.seq,
        "t_received_ns": message.arrival.t_received_ns,
        "t_capture_ns": message.t_capture_ns,
        "latency_ms": message.latency_ms,
        "window": message.header["window"],
    }


def _stop_event() -> threading.Event:
    stop = threading.Event()

    def handle(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    return stop


if __name__ == "__main__":
    raise SystemExit(main())
