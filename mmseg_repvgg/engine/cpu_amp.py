"""CpuAmpOptimWrapper: mixed precision without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Forward and losses under bfloat16 autocast; weights, gradients and steps in float32.

    mmengine's ``AmpOptimWrapper`` cannot be built without a GPU. Its loss scale is not needed here:
    bfloat16 has the exponents of float32. So the optimizer's states are those of ``OptimWrapper``,
    and each can resume from checkpoints of the other.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Add autocast to the context that gradient accumulation needs."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
