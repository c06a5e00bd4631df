"""3x3 convs -> Winograd's minimal filtering in PyTorch on the CPU, by the NNPACK it comes with.

A 3x3 conv of stride 1 needs 2.25 multiplications an output (F(2x2, 3x3), which the paper's section
2.4 counts) or, with tiles of 6x6, 1.78 in the place of 9: the reason why plain stacks of 3x3 are
fast. PyTorch's CPU convs do not use it. It is exact in exact arithmetic, and rounds a little more.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor, nn

from mmseg_repvgg.reparam.dilation import (
    Layers,
    SubMapConv2d,
    SubMapSequential,
    run_on_mosaic,
    run_on_sub_maps,
)

SMALLEST = 24 * 24
"""Pixels of a map below which transforming the kernels costs more than is saved."""


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


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int = 1) -> Tensor:
    """A 3x3 conv of stride 1 and padding 1 by Winograd.

    Args:
        x: (N, C_in, H, W) float32 on the CPU.
        weight: (C_out, C_in / groups, 3, 3).
        bias: (C_out,) or None.
        groups: Of the conv.

    Returns:
        (N, C_out, H, W).
    """
    if groups > 1:
        biases = [None] * groups if bias is None else bias.chunk(groups)
        parts = zip(x.chunk(groups, dim=1), weight.chunk(groups), biases, strict=True)
        return torch.cat([winograd_conv2d(*part) for part in parts], dim=1)
    # one by one: its code for batches is slower than PyTorch's
    images = [torch._nnpack_spatial_convolution(image, weight, bias, 1) for image in x.split(1)]
    return images[0] if len(images) == 1 else torch.cat(images)


class WinogradConv2d(nn.Conv2d):
    """A 3x3 conv that goes by Winograd where that is possible and pays; parameters as before."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W)."""
        return _convolve(self, x)


class WinogradSubMapConv2d(SubMapConv2d):
    """A :class:`SubMapConv2d` whose sub-maps are convolved by Winograd."""

    def convolve(self, x: Tensor) -> Tensor:
        """As :meth:`SubMapConv2d.convolve`."""
        return _convolve(self, x)


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
    count = 0
    for module in model.modules():
        if isinstance(module, SubMapSequential):
            module.run = _run
        elif type(module) in _WINOGRAD and _is_rewritable(module):
            if isinstance(module, SubMapConv2d):
                module.run = _run
            module.__class__ = _WINOGRAD[type(module)]
            count += 1
    return count


_WINOGRAD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: WinogradConv2d,
    SubMapConv2d: WinogradSubMapConv2d,
}


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    if x.shape[2] * x.shape[3] < SMALLEST or not runs_here(x, conv.weight):
        return nn.Conv2d.forward(conv, x)
    return winograd_conv2d(x, conv.weight, conv.bias, conv.groups)


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
    arrange = run_on_mosaic if runs_here(x, x) else run_on_sub_maps
    return arrange(layers, x, dilation)
