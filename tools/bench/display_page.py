"""The display's page in a headless browser, and when which picture was on it."""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from edge.errors import ConfigError
from tools.bench.display_movie import CODE_WIDTH_PX, NUM_BITS

if TYPE_CHECKING:
    from playwright.sync_api import CDPSession, Page

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_NUM_CLOCK_TRIES = 40
_TIMEOUT_MS = 60_000

# a picture is on the screen when the frame of the screen that follows begins: an upper bound
_WATCH = """([x, numBits]) => {
  window.drawn = [];
  addEventListener("drawn", ({ target, detail }) => {
    const canvas = target.querySelector("canvas.picture");
    const { data } = canvas.getContext("2d").getImageData(x, 0, 1, canvas.height);
    let code = 0;
    for (let bit = 0; bit < numBits; bit++) {
      const row = Math.floor((bit + 0.5) * canvas.height / numBits);
      if (data[4 * row + 2] > 127) code |= 1 << bit;
    }
    requestAnimationFrame(() => window.drawn.push([detail.index, code, performance.now()]));
  });
}"""
_TAKE = "() => window.drawn.splice(0)"


@dataclasses.dataclass(frozen=True, slots=True)
class Drawn:
    """One picture on the page."""

    index: int
    """What the message said."""
    code: int
    """What its pixels say: the index modulo the video's length."""
    t_ns: int
    """When it was on the screen at the latest, on this host's monotonic clock."""


class WatchedPage:
    """A page that notes its pictures."""

    def __init__(self, page: "Page", session: "CDPSession") -> None:
        self._page, self._session = page, session
        page.evaluate(_WATCH, [CODE_WIDTH_PX // 2, NUM_BITS])
        self._offset_ns = min(self._difference_ns() for _ in range(_NUM_CLOCK_TRIES))[1]

    def take(self) -> list[Drawn]:
        """Return the pictures since the last call."""
        drawn = self._page.evaluate(_TAKE)
        return [Drawn(index, code, round(ms * 1e6) + self._offset_ns) for index, code, ms in drawn]

    def wait(self, seconds: float) -> None:
        """Let the page go on."""
        self._page.wait_for_timeout(seconds * 1e3)

    def heap_mb(self) -> float:
        """Return what JavaScript holds, in MB (10^6 bytes), after a collection of what nobody needs."""
        self._session.send("HeapProfiler.collectGarbage")
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "JSHeapUsedSize") / 1e6

    def _difference_ns(self) -> tuple[int, int]:
        """Return how long a question took, and this host's clock less the page's."""
        before_ns = time.monotonic_ns()
        page_ms = self._page.evaluate("() => performance.now()")
        after_ns = time.monotonic_ns()
        return after_ns - before_ns, (before_ns + after_ns) // 2 - round(page_ms * 1e6)


@contextlib.contextmanager
def watched_page(url: str) -> Iterator[WatchedPage]:
    """Open the page and wait until it is live.

    Raises:
        ConfigError: There is no browser, or the page does not come to life.
    """
    path = next(filter(None, map(shutil.which, _BROWSERS)), None)
    try:
        from playwright.sync_api import TimeoutError as BrowserTimeoutError
        from playwright.sync_api import sync_playwright
    except ImportError as exc:
        raise ConfigError("edge-bench display needs playwright: pip install 'edge-ultrasound[test]'") from exc
    if path is None:
        raise ConfigError(f"edge-bench display needs a browser, one of {', '.join(_BROWSERS)}: apt install chromium")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        session = page.context.new_cdp_session(page)
        session.send("Performance.enable")
        page.goto(url)
        try:
            page.wait_for_selector(".tile[data-state=LIVE]", timeout=_TIMEOUT_MS)
        except BrowserTimeoutError as exc:
            raise ConfigError(
                f"the page did not turn LIVE within {_TIMEOUT_MS // 1000} s; is the engine too slow?"
            ) from exc
        yield WatchedPage(page, session)
