"""The display's page in headless Chromium, with daemons beside it."""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright
from source_files import write_movie

DEADLINE_MS = 40_000
SIZE_WH = (320, 240)
GRID = 4
FRAMES_A_CELL = 6
NUM_FRAMES = FRAMES_A_CELL * GRID * GRID


@contextlib.contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """Start the machine's Chromium."""
    path = shutil.which("chromium")
    assert path is not None, "chromium is not installed; `make test` installs it"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", *arguments])
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One page, and what it asked for and complained about."""

    def __init__(self, browser: Browser, url: str, width: int = 1280, height: int = 800) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(viewport={"width": width, "height": height})
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("websocket", lambda socket: self.requests.append(socket.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._note)
        self.page.goto(url)

    def _note(self, message: ConsoleMessage) -> None:
        # a server that is gone is told by the page itself; a keyframe may be overtaken by a stronger one
        is_expected = "net::" in message.text or "/keyframes/" in message.location.get("url", "")
        if message.type == "error" and not is_expected:
            self.complaints.append(message.text)

    def expect_state(self, state: str, tile: int = 0) -> None:
        expect(self.page.locator(".tile").nth(tile)).to_have_attribute("data-state", state, timeout=DEADLINE_MS)

    def expect_text(self, part: str, text: str, tile: int = 0) -> None:
        """Wait until a part of a tile holds this text."""
        expect(self.page.locator(".tile").nth(tile).locator(f".{part}")).to_contain_text(text, timeout=DEADLINE_MS)

    @property
    def hosts(self) -> set[str]:
        """HOST:PORT of all that the page asked for."""
        return {url.partition("://")[2].partition("/")[0] for url in self.requests if not url.startswith("blob:")}


@contextlib.contextmanager
def daemon(folder: Path, bundle: Path, video: Path, *, name: str = "main") -> Iterator[subprocess.Popen[bytes]]:
    """Run edge-infer on a video that it repeats; it publishes at `address_of(folder, name)`."""
    command = [sys.executable, "-m", "edge.cli", "--publish", address_of(folder, name), "--stream", name]
    command += [
        "--engine",
        str(bundle),
        "--source",
        str(video),
        "--loop",
        "--roi",
        "full",
        "--frames",
        "30",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def address_of(folder: Path, name: str = "main") -> str:
    return f"ipc://{folder}/{name}"


def centre_of(cell: int) -> tuple[float, float]:
    """Return x, y of a cell's centre in source pixels: the cells divide what the network sees, 7/8 of each side."""
    row, column = divmod(cell, GRID)
    width, height = SIZE_WH
    return width * (1 / 16 + 7 / 8 * (column + 0.5) / GRID), height * (1 / 16 + 7 / 8 * (row + 0.5) / GRID)


def cell_of(index: int) -> int:
    """Return where the blob is in a frame of the blob video."""
    # far from the place before, so that the map of another moment is seen
    return index % NUM_FRAMES // FRAMES_A_CELL * 7 % (GRID * GRID)


def write_blobs(path: Path) -> Path:
    """Write a video of a bright blob on black that leaps from cell to cell."""
    pictures = np.zeros((NUM_FRAMES, SIZE_WH[1], SIZE_WH[0]), np.uint8)
    for index, picture in enumerate(pictures):
        x, y = centre_of(cell_of(index))
        cv2.circle(picture, (round(x), round(y)), 16, 255, -1)
        picture[:8, (3 * index) % (SIZE_WH[0] - 8) :][:, :8] = 40  # outside of the cells: something always moves
    return write_movie(path, pictures, options={"crf": "10"})


def write_freezing(path: Path) -> Path:
    """Write a video that moves for three seconds and stands still for five."""
    moving = np.random.default_rng(0).integers(0, 256, (75, 24, 32), np.uint8).repeat(10, 1).repeat(10, 2)
    return write_movie(path, np.concatenate([moving, moving[-1:].repeat(125, 0)]))
