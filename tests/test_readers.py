"""The readers in docs/readers.md do what the document says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_publisher import DEADLINE_MS, SmallPublisher

from edge.prediction import State

DOCUMENT = Path(__file__).parent.parent / "docs" / "readers.md"
DEFAULT_ADDRESS = "tcp://127.0.0.1:5555"


def _python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def _start(code: str, address: str) -> subprocess.Popen[str]:
    assert DEFAULT_ADDRESS in code
    command = [sys.executable, "-u", "-c", code.replace(DEFAULT_ADDRESS, address)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("place", "num_topics"), [(0, 2), (1, 1)], ids=["edge.client", "pyzmq alone"])
def test_reader_in_the_document_prints_the_prediction(place: int, num_topics: int) -> None:
    with SmallPublisher() as publisher:
        process = _start(_python_blocks()[place], publisher.address)
        try:
            publisher.wait_for_subscriptions(num_topics)
            publisher.send_prediction(0.75)
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "LIVE" in line
            assert "0.75" in line
            assert "4.0" in (line if place == 1 else process.stdout.readline())
        finally:
            process.kill()
            process.communicate()


def test_reader_in_the_document_has_under_15_lines_and_ends_with_the_daemon() -> None:
    code = _python_blocks()[0]
    assert len(code.splitlines()) < 15
    with SmallPublisher() as publisher:
        process = _start(code, publisher.address)
        try:
            publisher.wait_for_subscriptions(2)
            publisher.send_status(State.NO_SIGNAL, "the source ended")
            publisher.close()
            assert process.wait(DEADLINE_MS / 1e3) == 0
        finally:
            process.kill()
            process.communicate()
