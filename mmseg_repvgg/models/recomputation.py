"""Recomputation in the backward pass (activation checkpointing), which saves memory.

Every batch is counted once in the BatchNorm statistics.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


class RecomputedSequential(nn.Sequential):
    """An ``nn.Sequential`` of which only the input is kept for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """As ``nn.Sequential``."""
        return recomputed(self, super().forward, x)


def recomputed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass instead of kept in memory.

    Args:
        module: Holds the BatchNorms of ``function``; each batch is counted once.
        function: What to compute.
        x: Its input.
    """
    if not torch.is_grad_enabled():
        return function(x)
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():  # statistics change once
        return checkpoint(function, x, use_reentrant=False)
    contexts = nullcontext(), _FrozenStatistics(module)
    return checkpoint(function, x, use_reentrant=False, context_fn=lambda: contexts)


def check_recomputation(block: Any) -> None:
    """Check that ``with_cp`` and ``recompute_1x1`` of a RepVGG block have an effect.

    Raises:
        ValueError: If one has none.
    """
    if block.deploy and block.with_cp:
        raise ValueError('with_cp=True has no effect on a fused block; leave it out')
    if not isinstance(block.recompute_1x1, bool):
        raise ValueError(f'recompute_1x1={block.recompute_1x1!r} must be True or False')
    if block.recompute_1x1 and block.with_cp:
        raise ValueError('recompute_1x1=True: with_cp=True recomputes the 1x1 branch already')
    norm = getattr(getattr(block, 'branch_1x1', None), 'norm', None)
    if block.recompute_1x1 and not isinstance(norm, _BatchNorm):
        form = 'a fused block' if block.deploy else f'branches={block.branches}'
        raise ValueError(
            f'recompute_1x1=True has no effect on {form} of {type(block).__name__}: there is no '
            '1x1 conv with a BatchNorm; leave it out'
        )


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
