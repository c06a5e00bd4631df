"""Dilated convs -> ordinary convs on interleaved sub-maps (space-to-batch), exactly.

A conv of dilation d never mixes pixels whose row or column numbers differ modulo d: on a map of
H x W it is d * d independent ordinary convs, each on the sub-map of every d-th row and column. Put
into the batch dimension they are one ordinary conv, which engines run by Winograd (the paper's
section 4.3 names the slow dilated convs as the limitation of its segmentation models). A run of
convs of the same dilation pays for the two reshapes once.

Where d does not divide H and W, the map is padded with zeros at its lower and right border. Bias
and activation fill that padding with something else, so that after every layer but the run's last
it is set back to zero; what is computed in it is cut off at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

Layers = Sequence[Callable[[Tensor], Tensor]]


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


def from_sub_maps(x: Tensor, dilation: int, size: Sequence[int]) -> Tensor:
    """Undo :func:`to_sub_maps`: (d * d * N, C, h, w) -> (N, C, H, W), with ``size`` = (H, W)."""
    channels, h, w = x.shape[1:]
    x = x.unflatten(0, (dilation, dilation, -1)).permute(2, 3, 4, 0, 5, 1)  # N, C, h, d, w, d
    x = x.reshape(-1, channels, h * dilation, w * dilation)
    # no view: an activation in place would be exported as a scatter into what was cut off
    return x[:, :, : size[0], : size[1]].contiguous()


def run_on_sub_maps(layers: Layers, x: Tensor, dilation: int) -> Tensor:
    """Apply ordinary layers in the place of layers of one ``dilation``.

    Args:
        layers: Stride-1 convs of dilation 1 with their "same" padding, each followed by nothing but
            pointwise functions.
        x: (N, C, H, W), of any size.
        dilation: Of the layers they stand for.

    Returns:
        (N, C_out, H, W).
    """
    batch, size = x.shape[0], x.shape[2:]
    is_padded = any(length % dilation for length in size)
    inside = to_sub_maps(x.new_ones(batch, 1, *size), dilation) if is_padded else None
    x = to_sub_maps(x, dilation)
    for position, layer in enumerate(layers, start=1):
        x = layer(x)
        if inside is not None and position < len(layers):
            x = x * inside
    return from_sub_maps(x, dilation, size)


class SubMapSequential(nn.Sequential):
    """A sequence of blocks in which runs of dilated ones are computed on sub-maps.

    Args:
        blocks: The sequence. Its children, and the names of their parameters, are taken over.
        dilations: Of each block; 1 for those that are computed as they are.
    """

    def __init__(self, blocks: nn.Sequential, dilations: Sequence[int]) -> None:
        super().__init__()
        for name, block in blocks.named_children():
            self.add_module(name, block)
        self.dilations = tuple(dilations)
        self.run: Callable[[Layers, Tensor, int], Tensor] = run_on_sub_maps
        self.training = blocks.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, H_out, W_out), as the blocks do one after the other."""
        for dilation, run in groupby(zip(self.dilations, self, strict=True), key=lambda p: p[0]):
            layers = [block for _, block in run]
            if dilation > 1:
                x = self.run(layers, x, dilation)
            else:
                for layer in layers:
                    x = layer(x)
        return x


class SubMapConv2d(nn.Conv2d):
    """A single dilated conv that is computed on sub-maps; parameters keep their names.

    Args:
        conv: The dilated conv, whose parameters it takes over.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=conv.groups,
            bias=conv.bias is not None,
            device='meta',
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.training = conv.training
        self.sub_map_step = _make_ordinary(self)
        self.run: Callable[[Layers, Tensor, int], Tensor] = run_on_sub_maps

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, H, W)."""
        return self.run([self.convolve], x, self.sub_map_step)

    def convolve(self, x: Tensor) -> Tensor:
        """Apply the ordinary conv: (n, C, h, w) -> (n, C_out, h, w)."""
        return nn.Conv2d.forward(self, x)


def undilate(model: nn.Module) -> int:
    """Compute every stride-1 dilated conv of ``model`` on sub-maps; in place.

    Runs are found in an ``nn.Sequential`` of fused RepVGG blocks, and the activations are of the
    run; other dilated convs (of a ResNet, or of a block whose squeeze-excitation needs the whole
    map) are computed by themselves. A conv whose padding does not keep the size is left.

    Args:
        model: Any module, best in fused form: each branch of a block in training form is a conv of
            its own.

    Returns:
        The number of convs changed: 0 if none is dilated.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Sequential):
                convs = [_only_conv(block) for block in child]
                if any(convs):
                    dilations = [1 if conv is None else _make_ordinary(conv) for conv in convs]
                    parent.add_module(name, SubMapSequential(child, dilations))
                    count += sum(conv is not None for conv in convs)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and _is_rewritable(child):
                parent.add_module(name, SubMapConv2d(child))
                count += 1
    return count


def _only_conv(block: Any) -> nn.Conv2d | None:
    """The dilated conv of a block that is this conv and then pointwise, or None."""
    conv = getattr(block, 'branch_reparam', None)
    pointwise_rest = isinstance(getattr(block, 'se_layer', None), nn.Identity)
    return conv if pointwise_rest and _is_rewritable(conv) else None


def _is_rewritable(conv: Any) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.stride == (1, 1)
        and conv.dilation[0] == conv.dilation[1] > 1
        and conv.padding_mode == 'zeros'
        and not isinstance(conv.padding, str)
        and all(
            2 * padding == dilation * (kernel - 1)
            for padding, dilation, kernel in zip(
                conv.padding, conv.dilation, conv.kernel_size, strict=True
            )
        )
    )


def _make_ordinary(conv: nn.Conv2d) -> int:
    """Give a conv dilation 1 and its padding; returns the dilation that it had."""
    dilation = conv.dilation[0]
    conv.padding = tuple((kernel - 1) // 2 for kernel in conv.kernel_size)
    conv._reversed_padding_repeated_twice = [p for p in reversed(conv.padding) for _ in range(2)]
    conv.dilation = (1, 1)
    return dilation
