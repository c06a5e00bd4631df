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
        loader = loop.dataloader
        sampler = getattr(loader, 'sampler', None)
        if iterator is None or not loop.iter or isinstance(iterator, _AtStep):
            return
        if isinstance(sampler, SeededSampler):
            sampler.skip_batches(loop.iter, loader.batch_size, loader.drop_last)
            loop.dataloader_iterator = _AtStep(type(iterator)(loader), loop.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed Python, numpy and torch."""
        if runner.seed is None:
            return
        seed = seed_of(runner.seed, runner.rank, runner.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # of all devices


class _AtStep:
    """An iterator that stands at a step already: the loop's own way to bring it there does nothing.

    That way is ``steps`` calls of ``next`` (mmengine), or one of ``skip_iter`` (onedl-mmengine).
    """

    def __init__(self, iterator: Any, steps: int) -> None:
        self.iterator, self.steps = iterator, steps

    def __iter__(self) -> _AtStep:
        return self

    def __next__(self) -> Any:
        if self.steps:
            self.steps -= 1
            return None
        return next(self.iterator)

    def skip_iter(self, steps: int) -> None:
        """Forget the steps."""
        self.steps = 0
