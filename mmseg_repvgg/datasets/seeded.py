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
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
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
        seed: The seed of the run; by default that of the sampler, or one drawn for all ranks.
    """

    def __init__(self, dataset: Sized, sampler: dict[str, Any], seed: int | None = None) -> None:
        self._settings = dict(sampler), dict(dataset=dataset, seed=seed)
        self.sampler = self._build()
        if seed is None:
            seed = getattr(self.sampler, 'seed', None)
        self.seed = sync_random_seed() if seed is None else seed
        self._settings[1]['seed'] = self.seed  # what skip builds anew draws the same
        self._first_epoch = self.epoch = 0
        self._resumed: tuple[Iterator[int], int] | None = None

    def _build(self) -> Any:
        settings, defaults = self._settings
        return DATA_SAMPLERS.build(dict(settings), default_args=defaults)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate the indices of this rank."""
        rank, _ = get_dist_info()
        indices, first = self._resumed or (iter(self.sampler), 0)
        self._resumed = None
        for place, index in enumerate(indices, first):
            yield SeededIndex.of(index, seed_of(self.seed, rank, self.epoch, place))

    def __len__(self) -> int:
        """That of the sampler."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler its epoch; after :meth:`skip`, the epoch there is number 0."""
        self.epoch = self._first_epoch + epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(self.epoch)

    def skip_batches(self, count: int, batch_size: int, drop_last: bool = False) -> None:
        """Begin anew, behind the first ``count`` batches of this rank; no data are loaded.

        A sampler that ends is iterated again, as the next epoch, like mmengine's iteration-based
        training does.

        Args:
            count: Number of batches.
            batch_size: Samples in each.
            drop_last: Whether an epoch's last batch is left out if it has fewer.
        """
        self.sampler, self._first_epoch = self._build(), 0
        while True:
            self.set_epoch(0)
            indices = iter(self.sampler)
            taken = sum(1 for _ in islice(indices, count * batch_size))
            batches = taken // batch_size if drop_last else -(-taken // batch_size)
            count -= batches
            if not count or not batches:
                break
            self._first_epoch += 1
        self._resumed = indices, taken


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Another data set, whose samples are loaded with the random state their index says.

    Attributes that are read or set, but ``dataset``, are those of the other data set: a hook that
    sets ``dataset.pipeline`` changes what is loaded.

    Args:
        dataset: Settings of the data set, or itself.
    """

    dataset: Any

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
        # copying and pickling ask for methods with underscores, before there is a data set
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the data set."""
        if name == 'dataset':
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)
