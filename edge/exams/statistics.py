"""The probability over an exam: the mean of its windows' logits, and how sure it is."""

import dataclasses
import math

import numpy as np

_NUM_RESAMPLES, _NUM_STEPS = 2000, 20
"""In small steps: live, the interpreter is shared with the stream."""
_MIN_BLOCKS, _MAX_BLOCKS = 5, 256
_MAX_LOGIT = 16.0
"""Of a probability that is 0 or 1 to the last digit."""


@dataclasses.dataclass(slots=True)
class LogitMean:
    """The mean over windows that come one after the other, in room that does not grow with their number.

    The windows are summed by blocks of one clip's length, for windows of other blocks share few frames. Beyond 256
    blocks each two neighbours become one.

    >>> mean = LogitMean()
    >>> for last_index in range(15, 115):
    ...     mean.add(0.5, first_index=last_index - 15, last_index=last_index)
    >>> mean.num_windows, mean.probability, mean.interval()
    (100, 0.5, (0.5, 0.5))
    """

    block_length: int = 0
    """In frames; 0 until the first window."""
    sums: list[float] = dataclasses.field(default_factory=list)
    """Of each block's logits."""
    counts: list[int] = dataclasses.field(default_factory=list)
    """Of each block's windows."""
    last_block: int = -1
    """Place in the stream of the block that grows."""

    def add(self, probability: float, *, first_index: int, last_index: int) -> None:
        """Take in a window's probability, and its first and last frame index."""
        self.block_length = self.block_length or max(1, last_index - first_index + 1)
        block = last_index // self.block_length
        if block != self.last_block:
            self.last_block = block
            self.sums.append(0.0)
            self.counts.append(0)
        self.sums[-1] += _logit(probability)
        self.counts[-1] += 1
        if len(self.sums) > _MAX_BLOCKS:
            self._merge()

    @property
    def num_windows(self) -> int:
        """How many windows there were."""
        return sum(self.counts)

    @property
    def probability(self) -> float:
        """The mean logit, as a probability; there must be a window."""
        return _sigmoid(sum(self.sums) / sum(self.counts))

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean logit, as probabilities; None where there are fewer than five blocks.

        Source: Künsch 1989, "The jackknife and the bootstrap for general stationary observations".
        """
        if len(self.sums) < _MIN_BLOCKS:
            return None
        sums, counts = np.array(self.sums), np.array(self.counts)
        rng, num_blocks = np.random.default_rng(0), len(sums)
        means = []
        for _ in range(_NUM_STEPS):
            chosen = rng.integers(0, num_blocks, (_NUM_RESAMPLES // _NUM_STEPS, num_blocks))
            means.append(sums.take(chosen).sum(axis=1) / counts.take(chosen).sum(axis=1))
        low, high = np.quantile(means, (0.025, 0.975))
        return _sigmoid(float(low)), _sigmoid(float(high))

    def _merge(self) -> None:
        self.block_length *= 2
        self.last_block //= 2
        self.sums = [sum(self.sums[place : place + 2]) for place in range(0, len(self.sums), 2)]
        self.counts = [sum(self.counts[place : place + 2]) for place in range(0, len(self.counts), 2)]


def _logit(probability: float) -> float:
    if not 0 < probability < 1:
        return math.copysign(_MAX_LOGIT, probability - 0.5)
    return max(-_MAX_LOGIT, min(_MAX_LOGIT, math.log(probability) - math.log1p(-probability)))


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))
