"""The bedside page in a real browser: what it draws, where, and how it is worked."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from display_page import (
    DEADLINE_MS,
    SIZE_WH,
    Visit,
    address_of,
    cell_of,
    centre_of,
    chromium,
    daemon,
    write_blobs,
)
from display_server import DisplayServer, serving
from playwright.sync_api import Browser, expect
from small_publisher import SmallPublisher

from edge.prediction import State

INNER_CELLS = (5, 6, 9, 10)

WATCH_HEAT = """() => {
  window.seen = [];
  addEventListener("drawn", (event) => {
    const canvas = event.target.querySelector("canvas.picture");
    const { data, width } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let sum = 0, x = 0, y = 0;
    for (let i = 0; i < data.length; i += 4) {
      const colour = Math.max(data[i], data[i + 1], data[i + 2]) - Math.min(data[i], data[i + 1], data[i + 2]);
      if (colour < 24) continue; // JPEG's noise
      sum += colour;
      x += colour * ((i / 4) % width + 0.5);
      y += colour * (Math.floor(i / 4 / width) + 0.5);
    }
    window.seen.push({ index: event.detail.index, colour: sum, x: x / sum, y: y / sum });
  });
}"""
"""Notes for each picture drawn how colourful it is, and the centre of its colours: the pictures are gray."""


REMOVE_WHILE_PAINTED = """async () => {
  const { Strip } = await import("/page/strip.js");
  const fetched = performance.getEntriesByType("resource").find(({ name }) => name.includes("/keyframes/"));
  const id = Number(fetched.name.split("/").pop());
  const strip = new Strip(document.createElement("ol"), { opacity: 0.6 }, () => null);
  strip.show([{ id, probability: 0.5, positive: true, t_wall_ms: 0 }]);
  const thumbnail = strip.thumbnails.get(id);
  while (!thumbnail.isPainting) await new Promise((resolve) => setTimeout(resolve, 1));
  strip.draw(); // another look is chosen, and the keyframe goes
  strip.show([]);
  for (let k = 0; k < 5000 && thumbnail.isPainting; k++) await new Promise((resolve) => setTimeout(resolve, 1));
  return thumbnail.isPainting;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blobs(tmp_path_factory.mktemp("videos") / "blobs.mp4")


@pytest.fixture(scope="module")
def live_server(tmp_path_factory: pytest.TempPathFactory, trivial_bundle: Path, blobs: Path) -> Iterator[DisplayServer]:
    """Return a server whose daemon plays blobs; leave both as they are."""
    folder = tmp_path_factory.mktemp("live")
    with daemon(folder, trivial_bundle, blobs), serving("--connect", address_of(folder)) as server:
        yield server


@pytest.fixture
def live(browser: Browser, live_server: DisplayServer) -> Iterator[Visit]:
    """Return its page."""
    visit = Visit(browser, live_server.url)
    visit.expect_state("LIVE")
    yield visit
    visit.page.close()


def test_page_draws_each_pictures_heat_exactly_where_its_blob_is(live: Visit, live_server: DisplayServer) -> None:
    visit = live
    visit.page.evaluate(WATCH_HEAT)
    expect(visit.page.locator(".keyframes button").first).to_be_visible(timeout=DEADLINE_MS)
    seen = _until_seen(visit, 50)
    for entry in seen:
        cell = cell_of(entry["index"])
        x, y = centre_of(cell)
        # a cell is 70 x 52 pixels, and the map of another moment lies one or more away; where the map ends, so does
        # the glow around a cell, and its centre moves inwards
        is_inner = cell in INNER_CELLS
        assert np.hypot(entry["x"] - x, entry["y"] - y) < (3 if is_inner else 12), (entry, cell)
    assert len({cell_of(entry["index"]) for entry in seen}) >= 3
    assert visit.hosts == {live_server.address}
    assert visit.complaints == []


def _until_seen(visit: Visit, number: int) -> list[dict[str, Any]]:
    """Wait for this many pictures with heat and return them."""
    seen: list[dict[str, Any]] = []
    for _ in range(DEADLINE_MS // 100):
        seen = [entry for entry in visit.page.evaluate("window.seen") if entry["colour"] > 0]
        if len(seen) >= number:
            return seen
        visit.page.wait_for_timeout(100)
    raise AssertionError(f"{len(seen)} pictures with heat")


def test_page_is_worked_by_the_keyboard_alone(live: Visit) -> None:
    visit, page = live, live.page
    page.evaluate(WATCH_HEAT)
    strong = np.median([entry["colour"] for entry in _until_seen(visit, 10)])
    page.keyboard.press("Tab")
    expect(page.locator("#heat")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.locator("#heat")).to_have_attribute("aria-pressed", "false")
    expect(page.locator("#opacity")).to_be_disabled()
    assert _colour_of_next(visit) == 0
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    expect(page.locator("#opacity")).to_be_focused()
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    assert 0 < _colour_of_next(visit) < 0.75 * strong
    page.keyboard.press("End")
    assert _colour_of_next(visit) > strong
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "light"
    page.locator(".keyframes button").first.focus()
    page.keyboard.press("Enter")
    dialog = page.locator("#large")
    expect(dialog).to_be_visible()
    expect(dialog.locator(".notice")).to_contain_text("Research use only, not for diagnosis")
    expect(dialog.locator(".caption")).to_contain_text("%")
    assert dialog.locator("canvas").evaluate("canvas => canvas.width") == SIZE_WH[0]
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    visit.expect_state("LIVE")


def _colour_of_next(visit: Visit) -> float:
    """Return the median colour of some pictures from now on."""
    visit.page.evaluate("window.seen = []")
    for _ in range(DEADLINE_MS // 100):
        visit.page.wait_for_timeout(100)
        colours = [entry["colour"] for entry in visit.page.evaluate("window.seen")]
        if len(colours) >= 6:
            return float(np.median(colours))
    raise AssertionError("no pictures come")


@pytest.mark.slow
def test_page_of_two_streams_judges_each_by_itself(
    browser: Browser, tmp_path: Path, trivial_bundle: Path, blobs: Path
) -> None:
    with (
        daemon(tmp_path, trivial_bundle, blobs, name="left"),
        daemon(tmp_path, trivial_bundle, blobs, name="right") as right,
        serving("--connect", address_of(tmp_path, "left"), address_of(tmp_path, "right")) as server,
    ):
        visit = Visit(browser, server.url)
        expect(visit.page.locator(".tile")).to_have_count(2, timeout=DEADLINE_MS)
        names = visit.page.locator(".tile .name")
        for tile in (0, 1):
            visit.expect_state("LIVE", tile)
        dead = [name.strip() for name in names.all_inner_texts()].index("right")
        right.kill()
        visit.expect_state("NO_DAEMON", dead)
        visit.expect_text("number", "–", dead)
        visit.expect_state("LIVE", 1 - dead)
        visit.expect_text("small", "", dead)
        assert "frames/s" not in visit.page.locator(".tile .small").nth(dead).inner_text()
        for width, height in ((1024, 768), (768, 1024)):
            visit.page.set_viewport_size({"width": width, "height": height})
            panel = visit.page.locator(".tile .panel").nth(1 - dead)
            assert panel.evaluate("part => part.scrollHeight <= part.clientHeight")  # nothing of it is cut off
            visit.page.locator(".tile .keyframes").nth(1).scroll_into_view_if_needed()
            expect(visit.page.locator("header .notice")).to_be_in_viewport(ratio=1)
        visit.page.close()


def test_page_keeps_streams_of_one_name_apart_and_each_in_its_place(browser: Browser, tmp_path: Path) -> None:
    addresses = [f"ipc://{tmp_path}/{name}" for name in ("b", "a")]
    with SmallPublisher(addresses[1]) as second, serving("--connect", *addresses) as server:
        second.wait_for_subscriptions(3)
        second.send_status()
        visit = Visit(browser, server.url)
        names = visit.page.locator(".tile .name")
        expect(names).to_have_text([addresses[0], "main"], timeout=DEADLINE_MS)
        with SmallPublisher(addresses[0]) as first:  # it comes last, and was named first
            first.wait_for_subscriptions(3)
            first.send_status()
            expect(names).to_have_text([f"main at {address}" for address in addresses], timeout=DEADLINE_MS)
        visit.page.close()


def test_page_of_three_streams_shows_all_of_them_on_a_full_hd_screen(browser: Browser) -> None:
    with contextlib.ExitStack() as stack:
        publishers = [stack.enter_context(SmallPublisher(stream=name)) for name in ("left", "middle", "right")]
        server = stack.enter_context(serving("--connect", *(publisher.address for publisher in publishers)))
        visit = Visit(browser, server.url, 1920, 1080)
        for tile, publisher in enumerate(publishers):
            publisher.wait_for_subscriptions(3)
            publisher.send_frame(10)
            publisher.send_prediction(0.999)
            visit.expect_text("finding", "metastasis", tile)
        main = visit.page.locator("main")
        assert main.evaluate("part => part.scrollHeight <= part.clientHeight")
        for number in visit.page.locator(".tile .number").all():
            expect(number).to_have_text(">99 %")
            assert number.evaluate("part => part.scrollWidth <= part.clientWidth")  # nothing of it is cut off
        visit.page.close()


NAMES = ("left", "right", "third", "fourth")
LABELS = """async () => {
  const { History } = await import("/page/history.js");
  const told = [];
  for (const [width, height] of [[225, 64], [600, 320]]) {
    const canvas = document.createElement("canvas");
    canvas.style = `position: fixed; width: ${width}px; height: ${height}px`;
    document.body.append(canvas);
    const pen = canvas.getContext("2d");
    const labels = [], curve = [];
    const { fillText, lineTo } = pen;
    pen.fillText = (text, x, y) => {
      const box = pen.measureText(text);
      const [left, right] = [x - box.actualBoundingBoxLeft, x + box.actualBoundingBoxRight];
      labels.push({ text, left, right, top: y - box.actualBoundingBoxAscent, bottom: y });
      fillText.call(pen, text, x, y);
    };
    pen.lineTo = (x, y) => { curve.push(y); lineTo.call(pen, x, y); };
    const history = new History(canvas);
    for (let k = 0; k < 600; k++) history.add(k % 2, 0.07, performance.now() - 100 * (600 - k));
    history.draw();
    canvas.remove();
    told.push({ labels, width, height, lowest: Math.max(...curve), highest: Math.min(...curve) });
  }
  return told;
}"""
"""Draws a curve that goes from 0 to 1 everywhere, and tells where labels and curve were drawn."""


@pytest.mark.parametrize(
    "size_wh", [(1280, 800), *(pytest.param(size, marks=pytest.mark.slow) for size in ((1920, 1080), (1080, 1920)))]
)
def test_page_of_four_streams_shows_all_of_them_without_scrolling(browser: Browser, size_wh: tuple[int, int]) -> None:
    with contextlib.ExitStack() as stack:
        publishers = [stack.enter_context(SmallPublisher(stream=name)) for name in NAMES]
        server = stack.enter_context(serving("--connect", *(publisher.address for publisher in publishers)))
        visit = Visit(browser, server.url, *size_wh)
        for tile, publisher in enumerate(publishers):
            publisher.wait_for_subscriptions(3)
            publisher.send_frame(10)
            publisher.send_prediction(0.999)
            publisher.send_status(exam_trouble="No space left on device" if tile == 3 else None)
            visit.expect_text("finding", "metastasis", tile)
        visit.expect_text(
            "unsaved", "No space left", 3
        )  # and the results are old by now: the most that there is to say
        expect(visit.page.locator(".keyframes button")).to_have_count(4, timeout=DEADLINE_MS)
        boxes = [box for tile in visit.page.locator(".tile").all() if (box := tile.bounding_box()) is not None]
        corners = {(round(box["x"]), round(box["y"])) for box in boxes}
        assert [len(set(axis)) for axis in zip(*corners, strict=True)] == [2, 2]  # two rows of two
        assert max(box["y"] + box["height"] for box in boxes) <= size_wh[1]
        for part in ("main", ".tile .panel"):
            for element in visit.page.locator(part).all():
                assert element.evaluate("part => part.scrollHeight <= part.clientHeight")  # nothing of it is cut off
        for number in visit.page.locator(".tile .number").all():
            assert number.evaluate("part => part.scrollWidth <= part.clientWidth")
            number_px = number.evaluate("part => parseFloat(getComputedStyle(part).fontSize)")
            assert number_px >= (60 if size_wh[0] == 1280 else 90)  # to be read from two metres on 24 inches
        for stage in visit.page.locator(".tile .stage").all():
            assert stage.evaluate("part => part.clientHeight") >= 0.25 * min(size_wh)
        assert _violations(visit) == []
        visit.page.close()


def test_history_labels_never_lie_on_the_curve_or_each_other(live: Visit) -> None:
    for told in live.page.evaluate(LABELS):
        labels = sorted(told["labels"], key=lambda label: label["left"])
        assert [label["text"] for label in labels] == ["60 s ago", "threshold 7.0 %", "now"]
        assert told["highest"] < 5
        assert all(told["lowest"] < label["top"] < label["bottom"] <= told["height"] for label in labels)
        edges = [0, *(round(label[side]) for label in labels for side in ("left", "right")), told["width"]]
        assert edges == sorted(edges), edges


def test_page_fits_screens_and_is_accessible(live: Visit, tmp_path: Path, subtests: pytest.Subtests) -> None:
    page = live.page
    expect(page.locator(".keyframes button").first).to_be_visible(timeout=DEADLINE_MS)
    for width, height in ((1920, 1080), (1024, 768), (768, 1024), (390, 844)):
        page.set_viewport_size({"width": width, "height": height})
        with subtests.test(size=f"{width}x{height}"):
            assert page.evaluate("document.scrollingElement.scrollWidth") <= width
            for part in ("header .notice", ".tile .state", ".tile .number"):
                box = page.locator(part).first.bounding_box()
                assert box is not None
                assert 0 <= box["x"] <= box["x"] + box["width"] <= width
                assert box["y"] + box["height"] <= height
            page.screenshot(path=tmp_path / f"{width}.png")
            page.evaluate("scrollTo(0, 9999)")
            expect(page.locator("header .notice")).to_be_in_viewport(ratio=1)
            assert _violations(live) == []
    page.set_viewport_size({"width": 1920, "height": 1080})
    number_px = page.locator(".number").evaluate("part => parseFloat(getComputedStyle(part).fontSize)")
    assert number_px >= 150  # to be read from two metres
    page.locator("#theme").click()
    page.screenshot(path=tmp_path / "light.png")
    assert _violations(live) == []
    page.locator(".keyframes button").first.click()
    page.screenshot(path=tmp_path / "large.png")
    assert _violations(live) == []


def _violations(visit: Visit) -> list[str]:
    results = Axe().run(visit.page).response
    assert results["passes"]
    return [
        f"{rule['id']}: {node['html'][:160]}: {node['failureSummary']}"
        for rule in results["violations"]
        for node in rule["nodes"]
    ]


def test_strip_that_changes_leaves_finger_and_keyboard_on_what_stays(browser: Browser) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        buttons = visit.page.locator(".keyframes button")
        for place, probability in enumerate((0.8, 0.9, 0.95)):
            publisher.send_frame(publisher.seq + 10)
            sent = publisher.send_prediction(probability, age_ms=90_000 - 20_000 * place)
            expect(buttons).to_have_count(place + 1)
            expect(buttons.first).to_contain_text(f"▲ {100 * probability:.0f} %")
            if place == 0:
                weakest_ns = sent["t_capture_ns"]
                buttons.first.evaluate("button => button.isTheSame = true")
                buttons.first.focus()
            expect(buttons.nth(place)).to_be_focused()
            assert buttons.nth(place).evaluate("button => button.isTheSame")
        # a neighbour of the first is stronger, and takes its place
        publisher.send_prediction(0.85, t_capture_ns=weakest_ns + 1)
        expect(buttons.nth(2)).to_contain_text("85 %")
        assert buttons.nth(2).evaluate("button => document.activeElement === button")
        assert visit.complaints == []
        visit.page.close()


def test_page_tells_of_a_stream_beside_one_whose_status_lacks_a_percentile(browser: Browser, tmp_path: Path) -> None:
    addresses = [f"ipc://{tmp_path}/{name}" for name in ("a", "b")]
    with (
        SmallPublisher(addresses[0]) as lacking,
        SmallPublisher(addresses[1]) as second,
        serving("--connect", *addresses) as server,
    ):
        for publisher in (lacking, second):
            publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        lacking.send_status(latency_ms={"p50": 13.0})
        second.send_status(State.FAULT, "the engine is gone")
        visit.expect_state("FAULT", tile=1)
        assert visit.complaints == []
        visit.page.close()


def test_page_rounds_no_probability_to_certainty_and_keeps_it_on_one_line(browser: Browser) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address, "--vanish-ms", "60000") as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        number = visit.page.locator(".tile .number")
        for probability, text in ((0.996, ">99 %"), (0.004, "<1 %"), (1.0, "100 %"), (0.0, "0 %"), (0.5, "50 %")):
            publisher.send_prediction(probability)
            visit.expect_text("number", text)
            for width, height in ((1920, 1080), (1280, 800), (1024, 768), (768, 1024)):
                visit.page.set_viewport_size({"width": width, "height": height})
                assert number.evaluate("part => part.scrollWidth <= part.clientWidth"), (text, width)
                assert number.evaluate("part => part.clientHeight < 1.5 * parseFloat(getComputedStyle(part).fontSize)")
        visit.page.close()


def test_keyframe_that_goes_while_it_is_painted_does_no_harm(browser: Browser) -> None:
    with SmallPublisher() as publisher, serving("--connect", publisher.address) as server:
        publisher.wait_for_subscriptions(3)
        visit = Visit(browser, server.url)
        publisher.send_frame(publisher.seq + 10)
        publisher.send_prediction(0.8)
        image = visit.page.locator(".keyframes img")
        expect(image).to_have_attribute("src", re.compile("^blob:"), timeout=DEADLINE_MS)
        assert not visit.page.evaluate(REMOVE_WHILE_PAINTED)
        assert visit.complaints == []
        visit.page.close()
