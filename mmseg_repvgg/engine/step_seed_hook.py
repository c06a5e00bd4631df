"""StepSeedHook: a resumed training goes on as if it had never been interrupted."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmseg_repvgg.datasets.seeded import SeededSampler, seed_of


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seed every training step by its number, and move the data of a resumed run to its step.

    Randomness in the model (dropout, drop path) then depends on the run's seed, the rank and the
    number of the step, not on earlier draws. :mod:`mmseg_repvgg.datasets.seeded` does this for the
    data. No random states need to be saved, the number of workers may change, and no data are
    loaded only to be dropped, unlike in mmengine 0.10's iteration-based training.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Warn if an epoch-based training does not resume at the start of an epoch."""
        loop: Any = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        start = loop.epoch * len(loop.dataloader)
        if loop.iter != start:
            runner.logger.warning(
                f'Resumed after {loop.iter} iterations, but epoch {loop.epoch + 1} starts after '
                f'{start}: the checkpoint was saved within an epoch, or with another batch size or '
                'number of processes. The epoch is trained from its start, and schedules that '
                f'count iterations are {loop.iter - start:+} iterations off'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Move the data of a resumed iteration-based training to its iteration."""
        loop: Any = runner.train_loop
        iterator = getattr(loop, 'dataloader_iterator', None)
        loader = loop.dataloader
        sampler = getattr(loader, 'sampler', None)
        if iterator is None or not loop.iter or isinstance(iterator, _SkippedIterator):
            return
        if isinstance(sampler, SeededSampler):
            sampler.skip_batches(loop.iter, loader.batch_size, loader.drop_last)
            loop.dataloader_iterator = _SkippedIterator(type(iterator)(loader), loop.iter)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed Python, numpy and torch."""
        if runner.seed is None:
            return
        seed = seed_of(runner.seed, runner.rank, runner.iter)
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)  # of all devices


class _SkippedIterator:
    """An iterator that is already at a step and ignores the loop's own calls to get there.

    These are ``steps`` calls of ``next`` (mmengine), or one of ``skip_iter`` (onedl-mmengine).
    """

    def __init__(self, iterator: Any, steps: int) -> None:
        self.iterator, self.steps = iterator, steps

    def __iter__(self) -> _SkippedIterator:
        return self

    def __next__(self) -> Any:
        if self.steps:
            self.steps -= 1
            return None
        return next(self.iterator)

    def skip_iter(self, steps: int) -> None:
        """Skip nothing: the iterator is already there."""
        self.steps = 0
