"""1x1 convs as matrix products, where a CPU is faster so.

oneDNN, by which PyTorch computes convs on the CPU, puts every map into a layout of its own and the
result back. A 1x1 conv has so few operations that this costs more than they do: as a product of
its kernel (C_out, C_in) and the maps (C_in, H * W), which need no other layout, it takes less time.
With a stride it sees one pixel of several, and nothing else need be moved.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.models.eager import is_on_cpu, is_unwatched
from mmseg_repvgg.models.stand_in import MadeOf, can_stand_in, kept_as

WIDEST = 256
"""Channels of a group, in or out, above which the operations cost more than the layout."""


def pointwise(conv: Any, x: Tensor) -> Tensor:
    """``conv(x)``, by a matrix product where ``conv`` is a 1x1 conv and that can be.

    It can on the CPU in single or double precision, for contiguous maps, without bias, with a
    stride or up to :data:`WIDEST` channels of a group on one side, and where nothing looks on: no
    hooks of the conv, and no graph that is traced, compiled or exported, in which a conv shall be
    one. If gradients of both ``x`` and the kernel are wanted, or of none, the graph keeps both, as
    a conv's does, and nothing that is made of them.

    Args:
        conv: Any module.
        x: (N, C_in, H, W).

    Returns:
        (N, C_out, H, W), or (N, C_out, ceil(H / stride), ceil(W / stride)).
    """
    if not (_is_plain(conv) and is_on_cpu(x, conv) and _are_alike(x, conv.weight)):
        return conv(x)
    weight, groups = conv.weight, conv.groups
    batch, _, *size = x.shape
    down, across = conv.stride

    def maps_of(x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N * groups, C / groups, pixels that are seen)."""
        return x[:, :, ::down, ::across].reshape(batch * groups, weight.shape[1], -1)

    def kernels_of(weight: Tensor) -> Tensor:
        """(C_out, C_in / groups, 1, 1) -> (N * groups, C_out / groups, C_in / groups)."""
        parts = weight.view(1, groups, -1, weight.shape[1])
        return parts.expand(batch, -1, -1, -1).flatten(0, 1)

    maps, kernels = maps_of(x), kernels_of(weight)
    copies = []
    if torch.is_grad_enabled() and can_stand_in():
        copies = [(maps, MadeOf(x, maps_of))] if down * across > 1 else []
        copies += [(kernels, MadeOf(weight, kernels_of))] if groups > 1 else []
    with kept_as(*copies) if copies else nullcontext():
        product = torch.bmm(kernels, maps)
    return product.view(batch, -1, -(-size[0] // down), -(-size[1] // across))


def _is_plain(conv: Any) -> bool:
    """Whether it is a 1x1 conv and no more than that."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding) == ((1, 1), (0, 0))
        and (
            conv.stride != (1, 1)
            or min(conv.in_channels, conv.out_channels) <= WIDEST * conv.groups
        )
        and conv.bias is None
        and is_unwatched(conv)
    )


def _are_alike(x: Tensor, weight: Tensor) -> bool:
    """In that gradients are wanted of both or of none."""
    return not torch.is_grad_enabled() or x.requires_grad == weight.requires_grad
