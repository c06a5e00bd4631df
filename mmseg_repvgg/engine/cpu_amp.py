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

    mmengine's ``AmpOptimWrapper`` refuses to be built where there is no GPU. What it would add on
    the CPU is a loss scale, which bfloat16, with the exponents of float32, does not need. So the
    optimizer's states are those of ``OptimWrapper``, and either resumes what the other saved.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, besides what gradient accumulation needs."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield
