"""Random augmentation that depends on the place of a sample in the training, and on nothing else.

mmengine draws augmentations from the random states of the process or of its workers, which are
lost with them: a resumed training sees other crops. One family replays all data of the iterations
done before, which takes as long as loading them and does not restore what else draws from the same
states; the other replays nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler


def seed_of(*numbers: int) -> int:
    """A seed of 32 bits for numbers that say which one: equal for equal numbers, else unrelated."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


@contextmanager
def random_state_of(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch (CPU) for the block; afterwards their states are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededIndex(int):
    """The index of a sample, with the seed of its augmentation as ``seed``."""

    seed: int

    @classmethod
    def of(cls, index: int, seed: int) -> SeededIndex:
        """An index with a seed."""
        made = cls(index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple:  # to the workers
        return SeededIndex.of, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """The indices of another sampler, each with a seed made of the run's, the rank and its place.

    Args:
        dataset: The data set.
        sampler: Settings of the sampler.
        seed: The seed of the run; by default that of the sampler.
    """

    def __init__(self, dataset: Sized, sampler: dict[str, Any], seed: int | None = None) -> None:
        self._settings = dict(sampler), dict(dataset=dataset, seed=seed)
        self.sampler = self._build()
        self.seed = self.sampler.seed if seed is None else seed
        self._settings[1]['seed'] = self.seed  # drawn, where there was none
        self._first = 0

    def _build(self) -> Any:
        settings, defaults = self._settings
        return DATA_SAMPLERS.build(dict(settings), default_args=defaults)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate the indices of this rank."""
        rank, _ = get_dist_info()
        epoch = getattr(self.sampler, 'epoch', 0)
        for place, index in enumerate(self.sampler):
            if place >= self._first:
                yield SeededIndex.of(index, seed_of(self.seed, rank, epoch, place))

    def __len__(self) -> int:
        """That of the sampler."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler its epoch."""
        self.sampler.set_epoch(epoch)

    def skip(self, num_samples: int) -> None:
        """Begin anew, behind the first ``num_samples`` of this rank; no data are loaded."""
        self.sampler = self._build()
        self._first = num_samples


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Another data set, whose samples are loaded with the random state their index says.

    Args:
        dataset: Settings of the data set, or itself.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, index: int) -> Any:
        """Load a sample."""
        seed = getattr(index, 'seed', None)
        if seed is None:
            return self.dataset[index]
        with random_state_of(seed):
            return self.dataset[int(index)]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        """Whatever else is asked of a data set (``metainfo``, ``full_init``)."""
        if name == 'dataset':  # not there yet, as while it is unpickled in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)
