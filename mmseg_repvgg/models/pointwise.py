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
from mmseg_repvgg.models.stand_in import can_stand_in, kept_as

WIDEST = 256
"""Channels, in or out, above which the operations of a conv cost more than the layout."""


def pointwise(conv: Any, x: Tensor) -> Tensor:
    """``conv(x)``, by a matrix product where ``conv`` is a 1x1 conv and that can be.

    It can on the CPU in single or double precision, for contiguous maps, without groups and bias,
    with a stride or up to :data:`WIDEST` channels on one side, and where nothing looks on: no hooks
    of the conv, and no graph that is traced, compiled or exported, in which a conv shall be one. If
    gradients of both ``x`` and the kernel are wanted, or of none, the graph keeps both, as a conv's
    does: with a stride, x and not the pixels of it that are seen.

    Args:
        conv: Any module.
        x: (N, C_in, H, W).

    Returns:
        (N, C_out, H, W), or (N, C_out, ceil(H / stride), ceil(W / stride)).
    """
    if not (_is_plain(conv) and is_on_cpu(x, conv) and _are_alike(x, conv.weight)):
        return conv(x)
    if conv.stride == (1, 1):
        return _product(conv.weight, x.flatten(2), x.shape[2:])
    seen = x[:, :, :: conv.stride[0], :: conv.stride[1]]
    maps = seen.flatten(2)
    keeps_x = torch.is_grad_enabled() and can_stand_in()
    with kept_as(maps, _SeenOf(x, conv.stride)) if keeps_x else nullcontext():
        return _product(conv.weight, maps, seen.shape[2:])


class _SeenOf:
    """Stands for the pixels of a map that a conv with a stride sees, one after the other.

    Args:
        x: (N, C, H, W).
        stride: Vertical and horizontal.
    """

    def __init__(self, x: Tensor, stride: tuple[int, int]) -> None:
        self.x, self.stride, self.version = x.detach(), stride, x._version

    def compute(self) -> Tensor:
        """(N, C, ceil(H / stride) * ceil(W / stride)).

        Raises:
            RuntimeError: If the map was changed since, as autograd says it of what it keeps.
        """
        if self.x._version != self.version:
            raise RuntimeError(
                'one of the variables needed for gradient computation has been modified by an '
                f'inplace operation: the input {tuple(self.x.shape)} of a 1x1 conv is at version '
                f'{self.x._version}; expected version {self.version} instead'
            )
        return self.x[:, :, :: self.stride[0], :: self.stride[1]].flatten(2)


def _product(weight: Tensor, maps: Tensor, size: torch.Size) -> Tensor:
    batch = len(maps)
    return torch.bmm(weight.flatten(1).expand(batch, -1, -1), maps).view(batch, -1, *size)


def _is_plain(conv: Any) -> bool:
    """Whether it is a 1x1 conv and no more than that."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.padding, conv.groups) == ((1, 1), (0, 0), 1)
        and (conv.stride != (1, 1) or min(conv.in_channels, conv.out_channels) <= WIDEST)
        and conv.bias is None
        and is_unwatched(conv)
    )


def _are_alike(x: Tensor, weight: Tensor) -> bool:
    """In that gradients are wanted of both or of none."""
    return not torch.is_grad_enabled() or x.requires_grad == weight.requires_grad
