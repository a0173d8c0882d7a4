"""Opens a lost live source again and again, until it is back or the stream ends."""

import logging
import threading
from collections.abc import Callable

from edge.errors import SourceLost

_log = logging.getLogger(__name__)

MIN_WAIT_S, MAX_WAIT_S = 0.05, 0.3
"""Between two tries; doubled from one to the next. Recovery within a second allows no more."""


def play_through_losses(
    play: Callable[[], None],
    on_loss: Callable[[SourceLost], None],
    stop: threading.Event,
    num_frames: Callable[[], int],
) -> None:
    """Call `play` until it returns or `stop` is set; each `SourceLost` is followed by a wait and another try.

    Args:
        play: Plays one connection of the source.
        on_loss: Is told each loss; the log is told when the reason changes.
        stop: Ends the waits.
        num_frames: How many frames came so far: the waits start short again after a frame.

    Raises:
        EdgeError: What `play` raises, but for `SourceLost`.
    """
    wait_s, told, num_before = MIN_WAIT_S, "", num_frames()
    while not stop.is_set():
        try:
            return play()
        except SourceLost as loss:
            if stop.is_set():
                return None
            if num_frames() > num_before:
                wait_s, told, num_before = MIN_WAIT_S, "", num_frames()
            on_loss(loss)
            if str(loss) != told:
                told = str(loss)
                _log.warning("%s; trying again", told)
        stop.wait(wait_s)
        wait_s = min(2 * wait_s, MAX_WAIT_S)
    return None
