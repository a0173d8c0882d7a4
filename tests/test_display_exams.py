"""Exams on the bedside page: what people press reaches the daemon, and nobody else's presses do."""

import asyncio
import http.client
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from display_server import DisplayServer, browsing, serving
from small_keeper import SmallKeeper, keeping
from small_publisher import SmallPublisher

from edge.commands import commands_of
from edge.control import ControlServer
from edge.prediction import State

DEADLINE_MS = 30_000


class SmallDaemon:
    """A publisher, a keeper and its control socket."""

    def __init__(self, folder: Path, small: SmallKeeper) -> None:
        self.small = small
        self.publisher = SmallPublisher(f"ipc://{folder}/publish")
        self.control = ControlServer(
            f"ipc://{folder}/control", commands_of(small.keeper), curve_dir=None, is_insecure=False
        )

    def publish(self, probability: float) -> None:
        """Publish a picture and the window that ends with it, as a part of the exam that is open."""
        first_index = self.publisher.seq
        self.small.send_frame(first_index + 10)
        self.small.send(probability, first_index)
        exam = self.small.terms.exam
        self.publisher.send_frame(first_index + 10)
        self.publisher.send_prediction(probability, **({"exam": exam.header()} if exam else {}))
        self.publisher.send_status(**self.small.terms.header())

    def close(self) -> None:
        self.control.close()
        self.publisher.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[SmallDaemon]:
    with keeping(tmp_path / "state") as small:
        daemon = SmallDaemon(tmp_path, small)
        yield daemon
        daemon.close()


@pytest.fixture
def display(daemon: SmallDaemon) -> Iterator[DisplayServer]:
    with serving("--connect", daemon.publisher.address, "--control", daemon.control.address) as server:
        daemon.publisher.wait_for_subscriptions(3)
        yield server


def _post(server: DisplayServer, body: object, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", "/exam", content, {"Content-Type": "application/json", **headers})
    response = connection.getresponse()
    status, text = response.status, response.read().decode()
    connection.close()
    return status, text


def test_exam_begins_and_ends_from_the_page(daemon: SmallDaemon, display: DisplayServer) -> None:
    address, keeper = daemon.publisher.address, daemon.small.keeper
    assert _post(display, {"address": address, "command": "exam-start"}) == (204, "")
    assert daemon.small.terms.exam is not None
    assert _post(display, {"address": address, "command": "exam-note", "note": "left"}) == (204, "")
    assert _post(display, {"address": address, "command": "exam-stop"}) == (204, "")
    assert _post(display, {"address": address, "command": "exam-stop"}) == (
        409,
        "no exam is open; send exam-start first",
    )
    summary = keeper.summary(with_keyframes=False)
    assert summary is not None
    assert [note["text"] for note in summary["notes"]] == ["left"]


def test_exam_is_told_to_browsers_without_its_notes(daemon: SmallDaemon, display: DisplayServer) -> None:
    daemon.small.keeper.begin("JANE DOE")
    for _ in range(3):
        daemon.publish(0.8)

    async def read() -> None:
        async with browsing(display) as browser:
            facts, _ = await browser.until(
                lambda facts: (
                    facts["kind"] == "exam" and facts["exam"] is not None and facts["exam"]["num_windows"] == 3
                )
            )
            exam = facts["exam"]
            assert (exam["is_open"], exam["num_notes"]) == (True, 1)
            assert exam["probability"] == pytest.approx(0.8)
            assert "JANE" not in json.dumps(facts)

    asyncio.run(read())


def test_keyframes_go_when_an_exam_begins_and_outlive_the_display(daemon: SmallDaemon, display: DisplayServer) -> None:
    async def read(server: DisplayServer, number: int, probability: float | None) -> None:
        async with browsing(server) as browser:
            facts, _ = await browser.until(
                lambda facts: facts["kind"] == "keyframes" and len(facts["keyframes"]) == number
            )
            assert [keyframe["probability"] for keyframe in facts["keyframes"]] == (
                [] if probability is None else [pytest.approx(probability)]
            )

    daemon.publish(0.9)
    asyncio.run(read(display, 1, 0.9))
    daemon.small.keeper.begin()
    daemon.publisher.send_status(**daemon.small.terms.header())
    asyncio.run(read(display, 0, None))
    daemon.publish(0.7)
    asyncio.run(read(display, 1, 0.7))
    display.kill()
    arguments = ("--connect", daemon.publisher.address, "--control", daemon.control.address)
    with serving(*arguments) as another:  # nothing is published any more
        asyncio.run(read(another, 1, 0.7))


def test_keyframes_of_an_exam_that_has_ended_take_in_no_later_window(
    daemon: SmallDaemon, display: DisplayServer
) -> None:
    async def watch() -> None:
        async with browsing(display) as browser:
            daemon.small.keeper.begin()
            daemon.publish(0.7)
            await browser.until(lambda facts: facts["kind"] == "keyframes" and len(facts["keyframes"]) == 1)
            daemon.small.keeper.end()
            daemon.publish(0.9)
            await browser.until(lambda facts: facts["kind"] == "prediction" and facts["probability"] > 0.8)
        async with browsing(display) as browser:
            facts, _ = await browser.until(lambda facts: facts["kind"] == "keyframes")
            assert [keyframe["probability"] for keyframe in facts["keyframes"]] == [pytest.approx(0.7)]

    asyncio.run(watch())


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        ({"command": "exam-start"}, {"Origin": "http://elsewhere.example"}, 403),
        ({"command": "exam-start"}, {"Host": "elsewhere.example"}, 403),
        ({"command": "exam-start"}, {"Content-Type": "text/plain"}, 415),
        ({"command": "threshold"}, {}, 409),
        ({"command": "exam-start", "address": "tcp://127.0.0.1:1"}, {}, 409),
        ({"command": "exam-note", "note": "x" * 501}, {}, 409),
        ({"command": "exam-note", "note": "x" * 5000}, {}, 413),
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"{}", {}, 400),
        (b"[" * 4000, {}, 400),
        ({"command": "exam-note", "note": "\ud800"}, {}, 400),
    ],
)
def test_press_that_is_none_changes_nothing(
    daemon: SmallDaemon, display: DisplayServer, body: object, headers: dict[str, str], status: int
) -> None:
    if isinstance(body, dict):
        body = {"address": daemon.publisher.address, **body}
    assert _post(display, body, **headers)[0] == status
    assert daemon.small.terms.exam is None
    assert daemon.small.terms.threshold == 0.5


def test_press_without_the_token_is_refused(daemon: SmallDaemon, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a1" * 16)
    arguments = ("--connect", daemon.publisher.address, "--control", daemon.control.address)
    with serving(*arguments, "--token-file", str(tmp_path / "token")) as server:
        press = {"address": daemon.publisher.address, "command": "exam-start"}
        assert _post(server, press)[0] == 401
        assert daemon.small.terms.exam is None
        assert _post(server, press, Cookie=f"edge_display_token={'a1' * 16}")[0] == 204


def test_control_addresses_must_match_the_daemons() -> None:
    from daemon import run_command

    arguments = "--connect", "ipc:///a", "--control", "ipc:///b", "ipc:///c", "--connect", "ipc:///d", "ipc:///e"
    done = run_command(*arguments, module="edge.display.cli")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--control has 2 addresses and --connect 3" in done.stderr  # an option may be given again


def test_display_ends_without_a_word_while_a_control_socket_does_not_answer(
    daemon: SmallDaemon, tmp_path: Path
) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as mute:
        mute.bind(f"ipc://{tmp_path}/mute")
        with serving("--connect", daemon.publisher.address, "--control", f"ipc://{tmp_path}/mute") as server:
            assert mute.poll(DEADLINE_MS)  # it asks, and waits for an answer
            server.process.terminate()
            _, complaints = server.process.communicate(timeout=DEADLINE_MS / 1000)
        assert server.process.returncode == 0
        assert "Traceback" not in complaints


def test_display_asks_on_where_answers_lack_all_that_they_should_hold(tmp_path: Path) -> None:
    answers = [{}, {"status": 5}, {"status": {}}, {"exam": {}}]

    async def trouble(server: DisplayServer) -> str:
        async with browsing(server) as browser:
            facts, _ = await browser.until(lambda facts: facts["kind"] == "exam" and facts["trouble"])
            return str(facts["trouble"])

    with zmq.Context() as context, context.socket(zmq.REP) as control, SmallPublisher() as publisher:
        control.linger = 0
        control.bind(f"ipc://{tmp_path}/control")
        with serving("--connect", publisher.address, "--control", f"ipc://{tmp_path}/control") as server:
            for answer in answers:
                assert control.poll(DEADLINE_MS), "it asks no more"
                control.recv()
                control.send(msgpack.packb({"v": 1, "ok": True, **answer}))
            assert "gave an answer that lacks something" in asyncio.run(trouble(server))
            assert control.poll(DEADLINE_MS)


def test_exam_is_not_begun_at_the_control_socket_of_another_daemon(daemon: SmallDaemon, display: DisplayServer) -> None:
    press = {"address": daemon.publisher.address, "command": "exam-start"}
    daemon.small.send_status(State.LIVE, run="one")

    def is_trouble(facts: dict[str, Any]) -> bool:
        daemon.publisher.send_status(run="another")  # again and again, as a daemon does
        return bool(facts["kind"] == "exam" and facts["trouble"])

    async def read() -> str:
        async with browsing(display) as browser:
            facts, _ = await browser.until(is_trouble)
            return str(facts["trouble"])

    assert f"{daemon.control.address} is another daemon's than {daemon.publisher.address}" in asyncio.run(read())
    status, said = _post(display, press)
    assert (status, daemon.small.terms.exam) == (409, None), said
    daemon.publisher.send_status(run="one")

    async def settle() -> None:
        async with browsing(display) as browser:
            await browser.until(lambda facts: facts["kind"] == "exam" and not facts["trouble"])

    asyncio.run(settle())
    assert _post(display, press)[0] == 204


def test_daemon_that_starts_again_is_not_taken_for_another(daemon: SmallDaemon, display: DisplayServer) -> None:
    async def read() -> list[str]:
        async with browsing(display) as browser:
            daemon.small.send_status(State.LIVE, run="one")
            daemon.publisher.send_status(run="one")
            await browser.until(lambda facts: facts["kind"] == "exam" and not facts["trouble"])
            daemon.publisher.send_status(run="one")
            daemon.publisher.close()
            await browser.until(lambda facts: facts["kind"] == "tick" and not facts["streams"][0]["is_connected"])
            daemon.small.send_status(State.WARMUP, run="two")
            exams = [await browser.until(lambda facts: facts["kind"] == "exam") for _ in range(2)]
            return [facts["trouble"] for facts, _ in exams]

    assert asyncio.run(read()) == ["", ""]


def test_page_shows_the_exam_and_its_buttons_work(daemon: SmallDaemon, display: DisplayServer) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium (Debian package chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(DEADLINE_MS)
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(display.url)
        daemon.publish(0.8)
        page.get_by_role("button", name="Start exam").click()
        page.get_by_role("button", name="Note").click()
        page.get_by_label("Note on the exam").fill("left axilla")
        page.get_by_role("button", name="Save").click()
        for _ in range(2):
            daemon.publish(0.8)
        page.locator(".exam-facts", has_text="80 % over 2 windows").wait_for()
        page.locator(".exam-facts", has_text="1 note").wait_for()
        page.get_by_role("button", name="End exam").click()
        assert daemon.small.terms.exam is not None
        page.get_by_role("button", name="Press again to end").press("Enter")
        page.locator(".exam-facts", has_text="Last exam").wait_for()
        assert page.evaluate("document.activeElement.className") == "exam"  # the keyboard is still there
        assert page.get_by_role("button", name="Start exam").is_visible()
        daemon.control.close()
        page.locator(".exam-facts", has_text="does not answer").wait_for()
        assert page.get_by_role("button", name="Start exam").is_disabled()
        browser.close()
    assert errors == []
    assert daemon.small.terms.exam is None
