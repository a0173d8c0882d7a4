"""Which videos a network was trained or tuned on, whatever they are called: by what their files hold.

A run and a bundle carry a digest of each video and neither its name nor its patient's. Whoever has a video can find out
whether it was among them; nobody can make a video, a name or a patient out of a digest. Patients are left out: an
identifier is short enough to be guessed, whatever is done to it. So another video of a patient of the training, or the
same one coded anew, is not recognised.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from edge.errors import SourceError
from engines.host import num_cores
from trainer.data.video import Video

NUM_DIGITS = 16
"""Of the hexadecimal SHA-256: among a million videos, two agree by chance once in 30 million times."""
PARTS = ("train", "validation")

Contents = Callable[[Video], str]
"""Returns the SHA-256 of a video's content in hexadecimal digits."""


@dataclasses.dataclass(frozen=True, slots=True)
class Seen:
    """Digests of the videos of a training."""

    train: frozenset[str] = frozenset()
    """Their pixels made the weights, here or in a run that training started from."""
    validation: frozenset[str] = frozenset()
    """They chose the epoch, the temperature and the threshold, here or there."""

    def __bool__(self) -> bool:
        return bool(self.train or self.validation)

    def part_of(self, digest: str) -> str | None:
        """Return "train", "validation", or None where the network has not seen it."""
        return "train" if digest in self.train else "validation" if digest in self.validation else None

    def __or__(self, other: "Seen") -> "Seen":
        return Seen(self.train | other.train, self.validation | other.validation)

    def as_json(self) -> dict[str, list[str]]:
        """Return what a run and a bundle say; sorted, so that the order tells nothing."""
        return {part: sorted(getattr(self, part)) for part in PARTS} if self else {}

    @classmethod
    def of_json(cls, value: Any) -> "Seen":
        """Read what `as_json` wrote; of anything else what can be used, for earlier versions wrote none."""
        parts = value if isinstance(value, Mapping) else {}
        lists = {part: given if isinstance(given := parts.get(part), list) else [] for part in PARTS}
        return cls(**{part: frozenset(map(str, given)) for part, given in lists.items()})

    @classmethod
    def of_videos(cls, train: Iterable[Video], validation: Iterable[Video], contents: Contents) -> "Seen":
        """Return the digests of the videos of a training that begins."""
        return cls(*(frozenset(digest_of(contents(video)) for video in videos) for videos in (train, validation)))


def digest_of(sha256: str) -> str:
    """Return what stands for a video's content."""
    return sha256[:NUM_DIGITS]


def find_seen(videos: Sequence[Video], seen: Seen, contents: Contents) -> dict[str, str]:
    """Return "train" or "validation" by id for the videos that a network has seen; others are not there.

    Args:
        videos: Any; each is read once, those that cannot be read are passed over.
        seen: Of the network.
        contents: Is called from several threads.
    """
    if not seen:
        return {}

    def part_of(video: Video) -> str | None:
        try:
            return seen.part_of(digest_of(contents(video)))
        except SourceError:  # it is named and left out when it is decoded
            return None

    with ThreadPoolExecutor(num_cores()) as pool:
        parts = zip(videos, pool.map(part_of, videos), strict=True)
        return {video.id: part for video, part in parts if part is not None}
