"""The interleaved sub-maps of a run of dilated layers as one map, with zeros between them.

:mod:`mmseg_repvgg.reparam.dilation` puts the d * d sub-maps of ceil(H / d) x ceil(W / d) pixels
into the batch. Here they lie side by side in d rows and d columns, for convs that are faster on one
large map. Below each is a row of zeros, and to its right a column of zeros: the padding of the 3x3
convs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mmseg_repvgg.reparam.dilation import Layers


def to_mosaic(x: Tensor, dilation: int) -> Tensor:
    """Lay the interleaved sub-maps of a map side by side, with zeros between them.

    Args:
        x: (N, C, H, W).
        dilation: d, the step of the sub-maps.

    Returns:
        (N, C, d * (ceil(H / d) + 1), d * (ceil(W / d) + 1)). The sub-map ``x[:, :, i::d, j::d]`` is
        the i-th from above and the j-th from the left.
    """
    x = F.pad(x, (0, -x.shape[3] % dilation, 0, -x.shape[2] % dilation))
    x = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))  # N, C, h, i, w, j
    return F.pad(x.permute(0, 1, 3, 2, 5, 4), (0, 1, 0, 0, 0, 1)).flatten(4, 5).flatten(2, 3)


def from_mosaic(x: Tensor, dilation: int, size: Sequence[int]) -> Tensor:
    """Undo :func:`to_mosaic`: mosaic -> (N, C, H, W), with ``size`` = (H, W)."""
    maps = _sub_maps(x, dilation)[:, :, :, :-1, :, :-1]
    x = maps.permute(0, 1, 3, 2, 5, 4).flatten(4, 5).flatten(2, 3)
    return x[:, :, : size[0], : size[1]].contiguous()


def run_on_mosaic(layers: Layers, x: Tensor, dilation: int) -> Tensor:
    """As :func:`mmseg_repvgg.reparam.dilation.run_on_sub_maps`, on a mosaic.

    For 3x3 convs only: larger kernels would see the neighbouring sub-map. The outputs of the layers
    are changed in place, so gradients cannot be computed.
    """
    size = x.shape[2:]
    x = to_mosaic(x, dilation)
    for position, layer in enumerate(layers, start=1):
        x = layer(x)
        if position < len(layers):
            clear_gaps(x, dilation, size)
    return from_mosaic(x, dilation, size)


def clear_gaps(mosaic: Tensor, dilation: int, size: Sequence[int]) -> None:
    """Set everything outside the sub-maps to zero, in place; ``size`` = (H, W) of the map."""
    maps = _sub_maps(mosaic, dilation)
    for i in range(dilation):
        height, width = (-(-(length - i) // dilation) for length in size)  # of the i-th sub-maps
        maps[:, :, i, height:].zero_()
        maps[..., i, width:].zero_()


def _sub_maps(mosaic: Tensor, dilation: int) -> Tensor:
    """A view of a mosaic as (N, C, i, h + 1, j, w + 1)."""
    return mosaic.unflatten(3, (dilation, -1)).unflatten(2, (dilation, -1))
