"""1x1 convs as matrix products, where a CPU is faster so.

oneDNN, by which PyTorch computes convs on the CPU, puts every map into a layout of its own and the
result back. A 1x1 conv has so few operations that this costs more than they do: as a product of
its kernel (C_out, C_in) and the maps (C_in, H * W), which need no other layout, it takes less time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

DTYPES = (torch.float32, torch.float64)

WIDEST = 256
"""Channels above which the operations cost more than the layout, so that the conv is as fast."""


def pointwise(conv: Any, x: Tensor) -> Tensor:
    """``conv(x)``, by a matrix product where ``conv`` is a 1x1 conv and that can be.

    It can on the CPU in single or double precision, without stride, groups and bias, up to
    :data:`WIDEST` channels, for contiguous maps, and where nothing looks on: no hooks of the conv,
    and no graph that is traced, compiled or exported, in which a conv shall be one. If gradients of
    both ``x`` and the kernel are wanted, or of none, the graph keeps both, as a conv's does.

    Args:
        conv: Any module.
        x: (N, C_in, H, W).

    Returns:
        (N, C_out, H, W), or (N, C_out, ceil(H / stride), ceil(W / stride)).
    """
    if not (_is_plain(conv) and _is_fast(x) and _are_alike(x, conv.weight)):
        return conv(x)
    batch, _, *size = x.shape
    kernels = conv.weight.flatten(1).expand(batch, -1, -1)
    return torch.bmm(kernels, x.flatten(2)).view(batch, -1, *size)


def _is_plain(conv: Any) -> bool:
    """Whether it is a 1x1 conv and no more than that."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding) == ((1, 1), (1, 1), (0, 0))
        and conv.groups == 1
        and max(conv.in_channels, conv.out_channels) <= WIDEST
        and conv.bias is None
        and not (conv._forward_hooks or conv._forward_pre_hooks)
        and not (conv._backward_hooks or conv._backward_pre_hooks)
        and not _has_any_global_hook()
    )


def _is_fast(x: Tensor) -> bool:
    return (
        x.dim() == 4
        and x.device.type == 'cpu'
        and x.dtype in DTYPES
        and x.is_contiguous()
        and not torch.is_autocast_enabled('cpu')
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
    )


def _are_alike(x: Tensor, weight: Tensor) -> bool:
    """In dtype, and in that gradients are wanted of both or of none."""
    of_one = torch.is_grad_enabled() and x.requires_grad != weight.requires_grad
    return x.dtype == weight.dtype and not of_one
