"""Where a layer may be computed in another way than by the function of its module."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

DTYPES = (torch.float32, torch.float64)


def is_unwatched(module: Any) -> bool:
    """Whether no hook sees the module's inputs, outputs or gradients."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def is_on_cpu(x: Tensor, module: nn.Module) -> bool:
    """Whether the CPU computes ``x`` as it stands, by parameters of the same dtype, fp32 or fp64.

    Not within autocast, nor while a graph is traced, compiled or exported, in which a module shall
    be what it is.

    Args:
        x: (N, C, H, W).
        module: Has a ``weight``.
    """
    return (
        x.dim() == 4
        and x.device.type == 'cpu'
        and x.dtype in DTYPES
        and x.dtype == module.weight.dtype
        and x.is_contiguous()
        and not torch.is_autocast_enabled('cpu')
        and not is_captured()
    )


def is_captured() -> bool:
    """Whether this call is traced, compiled or exported."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting()


def is_transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work.

    Functions with a backward pass of their own do not know them.
    """
    transforms = torch._C._functorch.peek_interpreter_stack()
    return transforms is not None or forward_ad._current_level >= 0
