"""StepSeedHook: a resumed training goes on as if it had never been interrupted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmseg_repvgg.datasets.seeded import SeededSampler, seed_of


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed every training step by its number, and set the data to the step where a resumed one is.

    What is random in the model (dropout, drop path) then depends on the run's seed, the rank and
    the number of the step, not on what was drawn before; what is random in the data is left to
    :mod:`mmseg_repvgg.datasets.seeded`. No random states need to be saved, the number of workers
    may change, and nothing is loaded to be thrown away, as mmengine 0.10 does in iteration-based
    training.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Set the data of an iteration-based training that is resumed to its iteration."""
        loop: Any = runner.train_loop
        iterator = getattr(loop, 'dataloader_iterator', None)
        sampler = getattr(loop.dataloader, 'sampler', None)
        if iterator is None or not loop.iter or not isinstance(sampler, SeededSampler):
            return
        if not hasattr(iterator, 'skip_iter'):  # where it is, the loop calls the sampler's skip
            sampler.skip(loop.iter * loop.dataloader.batch_size)
            loop.dataloader_iterator = _Advanced(type(iterator)(loop.dataloader), loop.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed Python, numpy and torch."""
        if runner.seed is None:
            return
        seed = seed_of(runner.seed, runner.rank, runner.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # of all devices


class _Advanced:
    """An iterator that stands where a loop means to bring it by ``steps`` steps."""

    def __init__(self, iterator: Any, steps: int) -> None:
        self.iterator, self.steps = iterator, steps

    def __iter__(self) -> _Advanced:
        return self

    def __next__(self) -> Any:
        if self.steps:
            self.steps -= 1
            return None
        return next(self.iterator)
