"""3x3 convs -> Winograd's minimal filtering in PyTorch on the CPU, by the NNPACK it comes with.

A 3x3 conv of stride 1 needs 2.25 multiplications an output (F(2x2, 3x3), which the paper's section
2.4 counts) or, with tiles of 6x6, 1.78 in the place of 9: the reason why plain stacks of 3x3 are
fast. PyTorch's CPU convs do not use it. It is exact in exact arithmetic, and rounds a little more.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.accel import nnpack
from mmseg_repvgg.accel.sub_map_mosaic import best_columns, run_on_mosaic
from mmseg_repvgg.reparam.dilation import (
    Layers,
    SubMapConv2d,
    SubMapSequential,
    run_on_sub_maps,
)

SMALLEST = 12 * 12
"""Pixels of a map below which it does not pay."""
SMALLEST_EACH_CALL = 28 * 28
"""The same where kernels are transformed in every call."""
SHARE_KEPT = 0.25
"""Of the machine's memory: what a model may hold in transformed kernels, 7 times its weights."""


@functools.cache
def is_available() -> bool:
    """Whether this PyTorch has NNPACK and it runs on this processor; the first call starts it."""
    return torch.backends.nnpack.is_available()


def runs_here(x: Tensor, weight: Tensor) -> bool:
    """Whether a conv of ``x`` would go by Winograd: float32 on the CPU, without gradients.

    Not while a graph is traced or compiled: what it is for has its own ways.
    """
    return (
        x.device.type == 'cpu'
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and is_available()
    )


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int = 1,
    kernels: Sequence[nnpack.TransformedKernel] | None = None,
    relu: bool = False,
) -> Tensor:
    """A 3x3 conv of stride 1 and padding 1 by Winograd.

    Args:
        x: (N, C_in, H, W) float32 on the CPU.
        weight: (C_out, C_in / groups, 3, 3).
        bias: (C_out,) or None.
        groups: Of the conv.
        kernels: The weight of each group, transformed; None: it is transformed here.
        relu: Whether a ReLU follows.

    Returns:
        (N, C_out, H, W).
    """
    biases = [None] * groups if bias is None else bias.chunk(groups)
    weights = weight.chunk(groups) if kernels is None else kernels
    parts = list(zip(weights, biases, strict=True))
    images = []
    for image in x.split(1):  # NNPACK's code for batches is slower than PyTorch's convs
        maps = [
            _convolve(group, weight, bias, relu)
            for group, (weight, bias) in zip(image.chunk(groups, dim=1), parts, strict=True)
        ]
        images.append(_joined(maps, dim=1))
    return _joined(images, dim=0)


def _convolve(x: Tensor, weight: Any, bias: Tensor | None, relu: bool) -> Tensor:
    if isinstance(weight, nnpack.TransformedKernel):
        return weight.convolve(x, bias, relu)
    out = torch._nnpack_spatial_convolution(x, weight, bias, 1)
    return out.relu_() if relu else out


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class KernelKeeper(nn.Conv2d):
    """What convs by Winograd have in common: kernels transformed once, if there is room.

    They are no part of the state dict, and follow the weight when that changes. Copies make their
    own.
    """

    keeps_kernels = False
    relu = False  # whether it is part of this conv
    _kept: tuple[Any, list[nnpack.TransformedKernel]] | None = None

    def by_winograd(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W), by Winograd where that is possible and pays."""
        keeps = self.keeps_kernels and not self.weight.is_inference()  # those have no version
        smallest = SMALLEST if keeps else SMALLEST_EACH_CALL
        if x.shape[2] * x.shape[3] < smallest or not runs_here(x, self.weight):
            out = nn.Conv2d.forward(self, x)
            return out.relu() if self.relu else out
        kernels = self._kernels() if keeps else None
        return winograd_conv2d(x, self.weight, self.bias, self.groups, kernels, self.relu)

    def _kernels(self) -> list[nnpack.TransformedKernel]:
        """The transformed kernel of each group."""
        state = (self.weight.data_ptr(), self.weight._version)
        if self._kept is None or self._kept[0] != state:
            self._kept = None  # before new ones are made: they are large
            kernels = [nnpack.TransformedKernel(part) for part in self.weight.chunk(self.groups)]
            self._kept = (state, kernels)
        return self._kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != '_kept'}


class WinogradConv2d(KernelKeeper):
    """A 3x3 conv that goes by Winograd where that is possible and pays; parameters as before."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W)."""
        return self.by_winograd(x)


class WinogradSubMapConv2d(KernelKeeper, SubMapConv2d):
    """A :class:`SubMapConv2d` whose sub-maps are convolved by Winograd."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W)."""
        return SubMapConv2d.forward(self, x)

    def convolve(self, x: Tensor) -> Tensor:
        """As :meth:`SubMapConv2d.convolve`."""
        return self.by_winograd(x)


def use_winograd(model: nn.Module) -> int:
    """Compute every 3x3 conv of stride 1 of ``model`` by Winograd where it can be; in place.

    Convs without dilation, and those that :func:`mmseg_repvgg.reparam.dilation.undilate` rewrote.
    On a GPU, in another dtype than float32, and where gradients are wanted they run as before.

    Args:
        model: Any module.

    Returns:
        The number of convs changed.
    """
    if not is_available():
        warnings.warn(
            "the rewrite 'winograd' has no effect here: this PyTorch has no NNPACK, or it does not "
            'know this processor (python -m mmseg_repvgg.doctor names PyTorch and machine)',
            stacklevel=2,
        )
    count, room = 0, _room()
    for module in model.modules():
        if isinstance(module, SubMapSequential):
            module.run = _run
        elif type(module) in _WINOGRAD and _is_rewritable(module):
            if isinstance(module, SubMapConv2d):
                module.run = _run
            module.__class__ = _WINOGRAD[type(module)]
            assert isinstance(module, KernelKeeper)
            room -= nnpack.transformed_bytes(module.weight)
            module.keeps_kernels = room >= 0
            count += 1
    for module in model.modules():
        _absorb_relu(module)
    return count


def _absorb_relu(block: Any) -> None:
    """Let the conv of a fused RepVGG block do the ReLU after it: one pass over the map less."""
    conv = getattr(block, 'branch_reparam', None)
    if not isinstance(conv, KernelKeeper) or not isinstance(block.se_layer, nn.Identity):
        return  # mmseg's blocks may have an act, too
    if type(block.act) is nn.ReLU:
        conv.relu, block.act = True, nn.Identity()


_WINOGRAD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: WinogradConv2d,
    SubMapConv2d: WinogradSubMapConv2d,
}


def _room() -> int:
    """Bytes that a model may keep in transformed kernels: none where they cannot be used."""
    if not (is_available() and nnpack.is_available()):
        return 0
    return int(SHARE_KEPT * os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))


def _is_rewritable(conv: nn.Module) -> bool:
    assert isinstance(conv, nn.Conv2d)
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
        and conv.padding in ((1, 1), 'same')
        and conv.padding_mode == 'zeros'
        and min(conv.in_channels, conv.out_channels) // conv.groups > 1
    )


def _run(layers: Layers, x: Tensor, dilation: int) -> Tensor:
    """One large map is transformed faster than a batch of small ones."""
    if not runs_here(x, x):
        return run_on_sub_maps(layers, x, dilation)
    return run_on_mosaic(layers, x, dilation, best_columns(x.shape[2:], dilation, nnpack.TILE))
