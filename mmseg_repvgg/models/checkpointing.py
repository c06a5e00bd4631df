"""Activation checkpointing that counts every batch once in the BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class CheckpointedSequential(nn.Sequential):
    """An ``nn.Sequential`` that is computed again in the backward pass.

    Only its input is kept for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Sequential``."""
        if torch.is_grad_enabled():
            return recomputed(self, super().forward, x)
        return super().forward(x)


def recomputed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass instead of kept in memory.

    Args:
        module: Holds the BatchNorms of ``function``; each batch is counted once.
        function: What to compute.
        x: Its input.
    """
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():  # statistics change once
        return checkpoint(function, x, use_reentrant=False)
    contexts = nullcontext(), _FrozenStatistics(module)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: contexts)


class _FrozenStatistics:
    """Keeps running statistics as they are: recomputation must not count a batch twice."""

    def __init__(self, module: nn.Module) -> None:
        self.norms: list[Any] = [m for m in module.modules() if isinstance(m, _BatchNorm)]

    def __enter__(self) -> None:
        self.before = [(norm.momentum, norm.num_batches_tracked) for norm in self.norms]
        for norm, (_, batches) in zip(self.norms, self.before, strict=True):
            norm.momentum = 0.0
            norm.num_batches_tracked = None if batches is None else batches.clone()

    def __exit__(self, *_: object) -> None:
        for norm, (momentum, batches) in zip(self.norms, self.before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches
