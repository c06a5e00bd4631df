"""Random augmentation that depends only on the seed and on a sample's position in the training.

mmengine draws augmentations from the random states of the process or of its workers. These are lost
when the process ends, so a resumed training sees other crops. mmengine 0.10 loads the data of all
earlier iterations again, which takes long and does not restore other users of the same states;
onedl-mmengine only moves the sampler.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS, DATASETS
from torch.utils.data import Dataset, Sampler


def seed_of(*numbers: int) -> int:
    """Return a 32-bit seed for some numbers: equal for equal numbers, otherwise unrelated."""
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


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Yields the indices of another sampler, with seeds from run seed, rank, epoch and position.

    Args:
        dataset: The data set.
        sampler: Settings of the sampler.
        seed: The seed of the run; by default that of the sampler, or one drawn for all ranks.
    """

    def __init__(self, dataset: Sized, sampler: dict[str, Any], seed: int | None = None) -> None:
        defaults = dict(dataset=dataset, seed=seed)
        self._build = partial(DATA_SAMPLERS.build, sampler, default_args=defaults)
        self.sampler = self._build()
        if seed is None:
            seed = getattr(self.sampler, 'seed', None)
        self.seed = sync_random_seed() if seed is None else seed
        defaults['seed'] = self.seed  # a sampler rebuilt by skip_batches draws the same
        self._first_epoch = self.epoch = 0
        self._resumed: tuple[Iterator[int], int] | None = None

    def __iter__(self) -> Iterator[SeededIndex]:
        """Iterate the indices of this rank."""
        rank, _ = get_dist_info()
        indices, first = self._resumed or (iter(self.sampler), 0)
        self._resumed = None
        for place, index in enumerate(indices, first):
            yield SeededIndex.of(index, seed_of(self.seed, rank, self.epoch, place))

    def __len__(self) -> int:
        """Return the length of the sampler."""
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Set the sampler's epoch, counted from the epoch that :meth:`skip_batches` reached."""
        self.epoch = self._first_epoch + epoch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(self.epoch)

    def skip_batches(self, count: int, batch_size: int, drop_last: bool = False) -> None:
        """Restart after the first ``count`` batches of this rank; no data are loaded.

        A sampler that ends is iterated again as the next epoch, as in mmengine's iteration-based
        training.

        Args:
            count: Number of batches.
            batch_size: Samples in each.
            drop_last: Whether an epoch's last batch is dropped if it is smaller.
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
    """Loads the samples of another data set with the random state given by their index.

    All attributes except ``dataset`` are read from and set on the other data set: a hook that sets
    ``pipeline`` changes what is loaded.

    Args:
        dataset: Settings of the data set, or the data set.
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
        """Read other attributes (``metainfo``, ``full_init``) from the data set."""
        # copy and pickle look for special methods before ``dataset`` is set
        if name == 'dataset' or name.startswith('__'):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the data set."""
        if name == 'dataset':
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)
