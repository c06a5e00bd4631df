"""Dilated convs -> ordinary convs on interleaved sub-maps (space-to-batch), exactly.

A conv of dilation d never mixes pixels whose row or column numbers differ modulo d: on a map of
H x W it is d * d independent ordinary convs, each on the sub-map of every d-th row and column. With
the sub-maps in the batch dimension it is one ordinary conv, which engines run by Winograd (the
paper's section 4.3 names the slow dilated convs as the limitation of its segmentation models). A
run of convs of the same dilation needs the two reshapes only once.

If d does not divide H and W, the map is padded with zeros at its lower and right border. Bias and
activation make this padding nonzero, so it is reset to zero after every layer except the run's
last, and is cut off at the end.

What depends on the size of the map stands in functions that ``torch.fx`` does not trace but calls.
A graph of ``torch.export`` for all sizes keeps the dilated convs: how maps are padded and split
depends on their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_repvgg.reparam.module_hooks import has_hooks
from mmseg_repvgg.reparam.open_size import has_open_size

Layers = Sequence[Callable[[Tensor], Tensor]]


@torch.fx.wrap
def to_sub_maps(x: Tensor, dilation: int) -> Tensor:
    """Split maps into their interleaved sub-maps.

    Args:
        x: (N, C, H, W).
        dilation: d, the step of the sub-maps.

    Returns:
        (d * d * N, C, h, w), h = ceil(H / d) and w = ceil(W / d). Entry (i, j, n) of the first
        dimension, seen as (d, d, N), holds the pixels ``x[n, :, i::d, j::d]``, with zeros after the
        last.
    """
    channels, height, width = x.shape[1:]
    x = F.pad(x, (0, -width % dilation, 0, -height % dilation))
    x = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))  # N, C, h, d, w, d
    return x.permute(3, 5, 0, 1, 2, 4).reshape(
        -1, channels, -(-height // dilation), -(-width // dilation)
    )


@torch.fx.wrap
def from_sub_maps(x: Tensor, dilation: int, size: Sequence[int]) -> Tensor:
    """Undo :func:`to_sub_maps`: (d * d * N, C, h, w) -> (N, C, H, W), with ``size`` = (H, W)."""
    channels, h, w = x.shape[1:]
    x = x.unflatten(0, (dilation, dilation, -1)).permute(2, 3, 4, 0, 5, 1)  # N, C, h, d, w, d
    x = x.reshape(-1, channels, h * dilation, w * dilation)
    # a copy: on a view, an activation in place would be exported as a scatter
    return x[:, :, : size[0], : size[1]].contiguous()


@torch.fx.wrap
def mask_of_padding(x: Tensor, dilation: int) -> Tensor | None:
    """What the sub-maps of ``x`` are multiplied by to reset their padding.

    Returns:
        (d * d * N, 1, h, w): 1 inside the map and 0 in the padding; None if there is no padding.
    """
    batch, _, *size = x.shape
    if not any(length % dilation for length in size):
        return None
    return to_sub_maps(x.new_ones(batch, 1, *size), dilation)


@torch.fx.wrap
def _reset_padding(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else x * mask


def run_on_sub_maps(layers: Layers, x: Tensor, dilation: int) -> Tensor:
    """Run layers of one ``dilation`` as ordinary layers on sub-maps.

    Args:
        layers: Stride-1 convs of dilation 1 with "same" padding, each followed only by pointwise
            functions.
        x: (N, C, H, W), of any size.
        dilation: Dilation of the layers that they replace.

    Returns:
        (N, C_out, H, W).
    """
    size, mask = x.shape[2:], mask_of_padding(x, dilation)
    x = layers[0](to_sub_maps(x, dilation))
    for layer in layers[1:]:
        x = layer(_reset_padding(x, mask))
    return from_sub_maps(x, dilation, size)


class SubMapConv2d(nn.Conv2d):
    """A dilated conv that is computed on sub-maps; :func:`undilate` makes it from an ``nn.Conv2d``.

    Its ``padding`` and ``dilation`` are those of the ordinary conv.
    """

    sub_map_step: int  # the dilation of the original conv
    run: Callable[[Layers, Tensor, int], Tensor] = staticmethod(run_on_sub_maps)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) or (C, H, W) -> the same with C_out channels."""
        if has_open_size(x):
            return self.convolve_dilated(x)
        return _run(self.run, [self.convolve], x, self.sub_map_step)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the ordinary conv: (n, C, h, w) -> (n, C_out, h, w)."""
        return nn.Conv2d.forward(self, x)

    def convolve_dilated(self, x: Tensor) -> Tensor:
        """Apply the original conv: (N, C, H, W) -> (N, C_out, H, W)."""
        step = self.sub_map_step
        padding = [step * (length // 2) for length in self.kernel_size]
        return F.conv2d(x, self.weight, self.bias, 1, padding, step, self.groups)


class SubMapSequential(nn.Sequential):
    """A sequence of blocks that computes each run of equal dilation on sub-maps."""

    run: Callable[[Layers, Tensor, int], Tensor] = staticmethod(run_on_sub_maps)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the blocks one after the other."""
        for step, blocks in groupby(self, key=_step_of_run):
            if step == 1 or has_open_size(x):
                for block in blocks:
                    x = block(x)
            else:
                x = _run(self.run, [partial(_run_block, block) for block in blocks], x, step)
        return x


def undilate(model: nn.Module) -> int:
    """Compute every stride-1 dilated conv of ``model`` on sub-maps; in place.

    Runs are found in an ``nn.Sequential`` of fused RepVGG blocks, and the activations are part of
    the run; other dilated convs (of a ResNet, or of a block whose squeeze-excitation needs the
    whole map) are computed by themselves. Modules change their class but stay in place, so
    hooks, names and other references to them stay valid. A conv whose padding does not keep the
    size, or whose kernel size is even, is left unchanged.

    Args:
        model: Any module, best in fused form: each branch of a block in training form is a conv of
            its own.

    Returns:
        The number of convs changed: 0 if none is dilated.
    """
    convs: list[Any] = [module for module in model.modules() if _is_rewritable(module)]
    for conv in convs:
        conv.__class__, conv.sub_map_step = SubMapConv2d, conv.dilation[0]
        conv.padding = tuple((kernel - 1) // 2 for kernel in conv.kernel_size)
        conv._reversed_padding_repeated_twice = [p for p in conv.padding[::-1] for _ in range(2)]
        conv.dilation = (1, 1)
    for module in model.modules():
        if type(module) is nn.Sequential and any(_step_of_run(block) > 1 for block in module):
            module.__class__ = SubMapSequential
    return len(convs)


def _step_of_run(block: Any) -> int:
    """The step of the sub-maps on which a block can run together with others, or 1.

    The block must be a conv and pointwise functions, without hooks: hooks expect whole maps.
    """
    conv = getattr(block, 'branch_reparam', None)
    if not isinstance(conv, SubMapConv2d) or any(map(has_hooks, block.modules())):
        return 1
    squeezes = (block.se_layer, getattr(block, 'post_se', block.se_layer))  # mmpretrain's has one
    return conv.sub_map_step if all(isinstance(m, nn.Identity) for m in squeezes) else 1


def _run_block(block: Any, x: Tensor) -> Tensor:
    return block.act(block.branch_reparam.convolve(x))


def _run(
    run: Callable[[Layers, Tensor, int], Tensor], layers: Layers, x: Tensor, dilation: int
) -> Tensor:
    """Run layers on sub-maps; maps may be unbatched and in any memory format."""
    return _restore_layout(run(layers, _as_batch(x), dilation), x)


@torch.fx.wrap
def _as_batch(x: Tensor) -> Tensor:
    return x[None] if x.dim() == 3 else x


@torch.fx.wrap
def _restore_layout(out: Tensor, x: Tensor) -> Tensor:
    """``out`` (N, C, H, W) unbatched, or in the memory format, as ``x``."""
    if x.dim() == 3:
        return out[0]
    # in this order: torch.vmap does not know other memory formats
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        out = out.contiguous(memory_format=torch.channels_last)
    return out


def _is_rewritable(conv: Any) -> bool:
    return (
        type(conv) is nn.Conv2d
        and 'forward' not in vars(conv)
        and conv.stride == (1, 1)
        and conv.dilation[0] == conv.dilation[1] > 1
        and conv.padding_mode == 'zeros'
        and not isinstance(conv.padding, str)
        and all(
            kernel % 2 == 1 and 2 * padding == dilation * (kernel - 1)
            for padding, dilation, kernel in zip(
                conv.padding, conv.dilation, conv.kernel_size, strict=True
            )
        )
    )
