"""The bedside page in a real browser: what it says when images freeze, and when daemons, servers and networks die."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from display_page import (
    DEADLINE_MS,
    Visit,
    address_of,
    chromium,
    daemon,
    write_blobs,
    write_freezing,
)
from display_server import serving
from playwright.sync_api import Browser, expect
from small_publisher import SmallPublisher

from edge.prediction import State

ROOT = Path(__file__).parent.parent
BED = "bed7.example"
JUDGE = """async (cases) => {
  const { judge } = await import("/page/judge.js");
  return cases.map((known) => judge({ link: "up", staleMs: 500, vanishMs: 2000, ...known }));
}"""
CLOCK = """async () => {
  const { ServerClock } = await import("/page/clock.js");
  const start = performance.now();
  const told = [];
  for (const [underway, aheads] of [[3, [NaN]], [300, [-5012, -5004]], [3, [-2000]]]) {
    const clock = new ServerClock(); // the server's clock is 5 s ahead
    for (const ahead of aheads) clock.note(start + 5000 - underway, ahead);
    clock.note(start + 5000 - 4000, NaN); // long under way
    told.push(performance.now() - clock.toPage(start + 5000 - 4000));
  }
  return told;
}"""
"""Ages of a bundle of 4 s: where nothing was confirmed; on a slow link, after confirmations that were 12 and 4 ms under
way; and after the page's clock stood still for 3 s."""

TILE = """() => {
  const tile = document.querySelector(".tile");
  const veil = tile.querySelector(".veil");
  return [tile.dataset.state, tile.classList.contains("dim"), veil.hidden ? null : veil.innerText];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(f"--host-resolver-rules=MAP {BED} 127.0.0.1") as browser:
        yield browser


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("videos") / "blobs.mp4")


def test_page_follows_a_real_daemon_through_freezing_death_and_return(
    browser: Browser, tmp_path: Path, trivial_bundle: Path, blobs: Path
) -> None:
    with serving("--connect", address_of(tmp_path), "--vanish-ms", "1500") as server:
        visit = Visit(browser, server.url)
        visit.expect_state("NO_DAEMON")
        visit.expect_text("number", "–")
        with daemon(tmp_path, trivial_bundle, blobs) as process:
            visit.expect_state("LIVE")
            visit.expect_text("number", "%")
            visit.expect_text("age", "ms old")
            process.send_signal(signal.SIGSTOP)
            visit.expect_state("STALE")
            visit.expect_text("age", "last result at")
            visit.expect_text("number", "–")  # it vanishes
            visit.expect_state("NO_DAEMON")
            visit.expect_text("reason", "has been silent for")
            process.send_signal(signal.SIGCONT)
            visit.expect_state("LIVE")
            process.kill()
            visit.expect_state("NO_DAEMON")
            visit.expect_text("reason", "is gone or does not answer")
            visit.expect_text("number", "–")
        with daemon(tmp_path, trivial_bundle, blobs):
            visit.expect_state("LIVE")
            visit.expect_text("number", "%")
        assert visit.complaints == []
        visit.page.close()


@pytest.mark.slow
def test_page_tells_a_dead_display_server_and_goes_on_with_its_successor(
    browser: Browser, tmp_path: Path, trivial_bundle: Path, blobs: Path
) -> None:
    with daemon(tmp_path, trivial_bundle, blobs):
        with serving("--connect", address_of(tmp_path)) as server:
            visit = Visit(browser, server.url)
            banner = visit.page.locator("#link")
            visit.expect_state("LIVE")
            expect(banner).to_be_hidden()
            server.process.send_signal(signal.SIGSTOP)
            visit.expect_state("NO_SERVER")
            server.process.send_signal(signal.SIGCONT)
            visit.expect_state("LIVE")
        visit.expect_state("NO_SERVER")
        expect(banner).to_contain_text("The display server is gone")
        visit.expect_text("number", "–")
        with serving("--connect", address_of(tmp_path), http=server.address):
            visit.expect_state("LIVE")
            expect(banner).to_be_hidden()
    assert visit.complaints == []
    visit.page.close()


def test_page_that_is_hidden_keeps_its_connection(browser: Browser) -> None:
    with serving("--connect", "tcp://127.0.0.1:9") as server:
        page = browser.new_page()
        # as browsers do with a page that nobody sees
        page.add_init_script(
            "Object.defineProperty(document, 'hidden', {get: () => true}); window.requestAnimationFrame = () => 0;"
        )
        with page.expect_websocket() as opened:
            page.goto(server.url)
        for _ in range(6):  # the server sends no more than two that are not confirmed
            opened.value.wait_for_event("framereceived", timeout=DEADLINE_MS)
        page.close()


@pytest.mark.slow
def test_page_is_loaded_anew_once_its_server_was_upgraded(browser: Browser, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "edge", tmp_path / "edge")
    (tmp_path / "engines").symlink_to(ROOT / "engines")
    display = tmp_path / "edge" / "display"
    _replace(display / "page" / "index.html", "<h1>edge-display</h1>", "<h1>upgraded</h1>")
    # that release's bundles are none that this release's page can read
    _replace(display / "page" / "link.js", "let offset = 16", "let offset = 24")
    _replace(display / "clients.py", 'struct.pack("<dd", ', 'struct.pack("<ddd", 0.0, ')
    with SmallPublisher() as publisher:
        with serving("--connect", publisher.address) as server:
            visit = Visit(browser, server.url)
            banner = visit.page.locator("#link")
            expect(banner).to_be_hidden(timeout=DEADLINE_MS)
            visit.page.evaluate("window.isOld = true")
        expect(banner).to_be_visible(timeout=DEADLINE_MS)
        with serving("--connect", publisher.address, http=server.address):
            expect(banner).to_be_hidden(timeout=DEADLINE_MS)
            assert visit.page.evaluate("window.isOld")  # the same release: nothing is loaded anew
        with serving("--connect", publisher.address, http=server.address, tree=tmp_path):
            expect(visit.page.locator("h1")).to_have_text("upgraded", timeout=DEADLINE_MS)
            expect(banner).to_be_hidden(timeout=DEADLINE_MS)
        assert visit.complaints == []
        visit.page.close()


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.slow
def test_page_of_another_machine_tells_a_lost_network_from_a_dead_server(
    browser: Browser, tmp_path: Path, trivial_bundle: Path, blobs: Path
) -> None:
    with daemon(tmp_path, trivial_bundle, blobs):
        with serving("--connect", address_of(tmp_path), "--allow-host", BED) as server:
            visit = Visit(browser, server.url.replace("127.0.0.1", BED))
            visit.expect_state("LIVE")
            server.process.send_signal(signal.SIGSTOP)  # what is sent is lost, as on a cable that was pulled
            visit.expect_state("NO_NETWORK")
            expect(visit.page.locator("#link")).to_contain_text("No word from the display server")
            visit.expect_text("number", "–")
            server.process.send_signal(signal.SIGCONT)
            visit.expect_state("LIVE")
        visit.expect_state("NO_SERVER")
        visit.page.close()


@pytest.mark.slow
def test_page_of_a_frozen_image_keeps_the_last_result_marked_as_of_then(
    browser: Browser, tmp_path: Path, trivial_bundle: Path
) -> None:
    video = write_freezing(tmp_path / "freezing.mp4")
    with daemon(tmp_path, trivial_bundle, video), serving("--connect", address_of(tmp_path)) as server:
        visit = Visit(browser, server.url)
        visit.expect_state("FROZEN")
        age = visit.page.locator(".age")
        expect(age).to_contain_text("as of")
        expect(age).to_contain_text("3.", timeout=DEADLINE_MS)  # seconds ago: longer than a live number stays
        visit.expect_text("number", "%")
        assert "past" in (visit.page.locator(".number").get_attribute("class") or "")
        visit.expect_state("LIVE")
        visit.page.close()


@pytest.mark.parametrize("state", [state for state in State if state not in (State.LIVE, State.STALE)])
def test_page_says_the_daemons_state_in_words_and_by_a_sign(browser: Browser, state: State) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        publisher.send_prediction(0.75)
        publisher.send_status(state, "a reason <b>in words</b>")
        visit.expect_state(str(state))
        visit.expect_text("reason", "a reason <b>in words</b>")
        expect(visit.page.locator(".sign use")).to_have_attribute("href", "#" + str(state).lower().replace("_", "-"))
        assert visit.complaints == []
        visit.page.close()


def test_page_says_that_a_recording_has_ended(browser: Browser) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        publisher.send_status(recording={"trouble": None, "num_left_out": 0})
        visit.expect_state("WARMUP")
        expect(visit.page.locator(".recording")).to_be_hidden()
        publisher.send_status(recording={"trouble": None, "num_left_out": 3})
        visit.expect_text("recording", "has gaps")
        publisher.send_status(recording={"trouble": "No space left on device", "num_left_out": 3})
        visit.expect_text("recording", "Nothing is recorded any more: No space left on device")
        visit.page.close()


def test_page_says_that_an_exam_is_not_saved(browser: Browser) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        unsaved = visit.page.locator(".unsaved")
        publisher.send_status(exam_trouble=None)
        visit.expect_state("WARMUP")
        expect(unsaved).to_be_hidden()
        publisher.send_status(exam_trouble="No space left on device")
        visit.expect_text("unsaved", "The exam is not saved: No space left on device")
        publisher.send_status()  # of a daemon that does not tell
        expect(unsaved).to_be_hidden(timeout=DEADLINE_MS)
        visit.page.close()


def test_page_of_a_frozen_image_shows_no_result_of_the_image_before(browser: Browser) -> None:
    arguments = ("--vanish-ms", "600")
    with SmallPublisher() as publisher, serving("--connect", publisher.address, *arguments) as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        publisher.send_prediction(0.75)
        publisher.send_status(State.FROZEN, "the image is frozen")
        visit.expect_state("FROZEN")
        visit.expect_text("age", "1.")  # seconds ago
        visit.expect_text("number", "75 %")
        publisher.send_status(State.NO_SIGNAL, "no picture")
        publisher.send_status(State.FROZEN, "the image is frozen")
        visit.expect_text("number", "–")
        visit.expect_state("FROZEN")
        visit.page.close()


def test_page_never_shows_an_old_picture_as_the_live_one(browser: Browser) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address, "--vanish-ms", "1500") as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        expect(visit.page.locator(".tile")).to_have_count(1, timeout=DEADLINE_MS)
        is_shown = is_told = False
        for index in range(DEADLINE_MS // 50):
            if not is_shown:
                publisher.send_frame(index)  # then the pictures have ended, and the results go on
            publisher.send_prediction(0.75)
            visit.page.wait_for_timeout(50)
            state, is_dim, veil = visit.page.evaluate(TILE)
            is_shown |= state == "LIVE" and not is_dim and veil is None
            is_told = is_shown and state == "LIVE" and is_dim and (veil or "").startswith("The picture is")
            if is_told:
                break
        assert is_told, (state, is_dim, veil)
        visit.page.close()


def test_judge_never_takes_what_is_old_or_cut_off_for_live(browser: Browser) -> None:
    stream = {"is_connected": True, "refusal": "", "address": "a", "silent_ms": 100, "state": "LIVE", "reason": ""}
    result = {"probability": 0.5}
    cases: list[tuple[dict[str, Any], str, bool]] = [
        ({"stream": stream, "result": result, "ageMs": 400}, "LIVE", True),
        ({"stream": stream, "result": result, "ageMs": 501}, "STALE", True),
        ({"stream": stream, "result": result, "ageMs": 2001}, "STALE", False),
        ({"stream": stream, "result": None, "ageMs": None}, "WARMUP", False),
        ({"stream": stream | {"silent_ms": 3001}, "result": result, "ageMs": 10}, "NO_DAEMON", True),
        ({"stream": stream | {"is_connected": False}, "result": result, "ageMs": 2001}, "NO_DAEMON", False),
        ({"stream": stream | {"state": "FROZEN"}, "result": result, "ageMs": 60_000}, "FROZEN", True),
        (
            {"stream": stream | {"state": "FROZEN", "is_connected": False}, "result": result, "ageMs": 60_000},
            "NO_DAEMON",
            False,
        ),
        ({"stream": stream | {"state": "FAULT"}, "result": result, "ageMs": 2001}, "FAULT", False),
        (
            {"stream": stream | {"state": "FROZEN", "is_result_cut": True}, "result": result, "ageMs": 2001},
            "FROZEN",
            False,
        ),
        ({"stream": stream, "result": result, "ageMs": 10, "link": "server"}, "NO_SERVER", True),
        ({"stream": stream, "result": result, "ageMs": 10, "link": "network"}, "NO_NETWORK", True),
    ]
    with serving("--connect", "tcp://127.0.0.1:9") as server:
        visit = Visit(browser, server.url)
        verdicts = visit.page.evaluate(JUDGE, [known for known, _, _ in cases])
        ages_ms = visit.page.evaluate(CLOCK)
        visit.page.close()
    assert [(verdict["key"], verdict["showsNumber"]) for verdict in verdicts] == [case[1:] for case in cases]
    assert [verdict["isCurrent"] for verdict in verdicts] == [True] + [False] * (len(cases) - 1)
    heard = {verdict["key"] for verdict in verdicts if verdict["isHeard"]}
    assert heard == {"LIVE", "STALE", "WARMUP", "FROZEN", "FAULT"}
    assert ages_ms == [pytest.approx(age_ms, abs=50) for age_ms in (3997, 4004, 3997)]
    assert ages_ms[1] >= 4000
