"""Clips of decoded videos for training and validation.

What a training clip looks like depends on the seed, the epoch, the video and the draw alone: not on which worker makes
it, nor on what was drawn before. So any number of workers, and a training that was killed and goes on, sees the same.
"""

import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import cv2
import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from engines.host import num_cores
from trainer.data.clips import VideoFrames
from trainer.data.video import Video
from trainer.training.augment import Augment, draw_frames
from trainer.training.recipe import Recipe

_SCALE = np.float32(1 / 255)  # as edge.preprocess scales, to the last bit
MAX_WORKERS = 8
"""Processes that make clips ahead, at most."""
NUM_VALIDATION_WINDOWS = 4
"""A video, each epoch; the whole video is looked at once training has ended."""

Item = tuple[Tensor, int, int]
"""Clip (T, C, H, W) float32 in 0..1, label, index of the video."""
Key = tuple[int, int, int]
"""Epoch, index of the video, draw."""


class TrainingClips(Dataset[Item]):
    """Random clips, by `Key`."""

    def __init__(self, videos: Sequence[tuple[Video, VideoFrames]], recipe: Recipe, seed: int) -> None:
        self._videos = videos
        self._recipe = recipe
        self._seed = seed
        self._augment = Augment(recipe)

    def __getitem__(self, key: Key) -> Item:
        video, decoded = self._videos[key[1]]
        rng = np.random.default_rng((self._seed, *key))
        frames = decoded.frames[draw_frames(decoded.window_starts, self._recipe, rng)]
        return self._augment(frames, rng), video.label, key[1]


class TrainingOrder(Sampler[Key]):
    """Which clips an epoch takes, in which order: each video `clips_per_video` times, shuffled, a share a process.

    Processes get equally many, so that none waits for another; the first clips make up what is missing. What does not
    fill a last batch is drawn again from the start, as a batch of one clip would upset batch normalisation.
    """

    def __init__(
        self, num_videos: int, recipe: Recipe, seed: int, epoch: int = 0, rank: int = 0, num_processes: int = 1
    ) -> None:
        self._num_videos = num_videos
        self._draws = recipe.clips_per_video
        self._seed = seed
        self._rank, self._num_processes = rank, num_processes
        self._epoch = epoch
        batch = recipe.batch_size * num_processes
        self._num_clips = -(-num_videos * self._draws // batch) * batch

    def set_epoch(self, epoch: int) -> None:
        """Begin another epoch; Lightning calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_clips // self._num_processes

    def __iter__(self) -> Iterator[Key]:
        order = np.random.default_rng((self._seed, self._epoch)).permutation(self._num_videos * self._draws)
        for clip in np.resize(order, self._num_clips)[self._rank :: self._num_processes]:
            draw, video = divmod(int(clip), self._num_videos)
            yield self._epoch, video, draw


class ValidationClips(Dataset[Item]):
    """A few windows of each video, evenly spread, as live: video after video."""

    def __init__(self, videos: Sequence[tuple[Video, VideoFrames]]) -> None:
        self._videos = videos

    def __len__(self) -> int:
        return len(self._videos) * NUM_VALIDATION_WINDOWS

    def __getitem__(self, index: int) -> Item:
        which, place = divmod(index, NUM_VALIDATION_WINDOWS)
        video, decoded = self._videos[which]
        starts = decoded.window_starts
        start = int(starts[(2 * place + 1) * len(starts) // (2 * NUM_VALIDATION_WINDOWS)])
        return torch.from_numpy(np.multiply(decoded.clip(start), _SCALE, dtype=np.float32)), video.label, which


class Clips(pl.LightningDataModule):
    """The loaders of one training, each with this process's share."""

    def __init__(
        self,
        train: Sequence[tuple[Video, VideoFrames]],
        validation: Sequence[tuple[Video, VideoFrames]],
        recipe: Recipe,
        seed: int,
        first_epoch: int = 0,
    ) -> None:
        super().__init__()
        self._train, self._validation = train, validation
        self._recipe, self._seed = recipe, seed
        self._first_epoch = first_epoch

    def train_dataloader(self) -> DataLoader[Item]:
        process = self.trainer.global_rank, self.trainer.world_size
        # Lightning begins to iterate before it tells the sampler of the epoch
        order = TrainingOrder(len(self._train), self._recipe, self._seed, self._first_epoch, *process)
        return self._loader(TrainingClips(self._train, self._recipe, self._seed), order)

    def val_dataloader(self) -> DataLoader[Item]:
        dataset = ValidationClips(self._validation)
        share = range(self.trainer.global_rank, len(dataset), self.trainer.world_size)
        return self._loader(dataset, share)

    def _loader(self, dataset: Dataset[Item], order: Iterable[Any]) -> DataLoader[Item]:
        num_workers = min(MAX_WORKERS, num_cores())
        return DataLoader(
            dataset,
            self._recipe.batch_size,
            sampler=order,
            num_workers=num_workers,
            worker_init_fn=_start_worker,
            persistent_workers=True,
            pin_memory=torch.cuda.is_available(),
        )


def _start_worker(index: int) -> None:
    cv2.setNumThreads(0)  # the workers share the cores already
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the training to end them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Lightning's handler came along with the fork
