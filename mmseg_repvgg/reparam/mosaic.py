"""The interleaved sub-maps of a dilated run as one map, with zeros between them.

What :mod:`mmseg_repvgg.reparam.dilation` puts into a batch lies here side by side, for convolutions
that are faster on one large map. The d * d sub-maps of ceil(H / d) x ceil(W / d) pixels, each with
a row of zeros below and a column of zeros on its right, are laid in 1, d or d * d columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from mmseg_repvgg.reparam.dilation import Layers


def best_columns(size: Sequence[int], dilation: int, tile: int) -> int:
    """The number of columns for which the fewest square tiles cover the mosaic.

    Args:
        size: (H, W) of the map.
        dilation: d.
        tile: Side of a tile in pixels.
    """
    height, width = (-(-length // dilation) + 1 for length in size)

    def tiles(columns: int) -> int:
        rows = dilation**2 // columns
        return -(-rows * height // tile) * -(-columns * width // tile)

    return min((dilation, 1, dilation**2), key=tiles)  # of equal ones the squarest


def to_mosaic(x: Tensor, dilation: int, columns: int) -> Tensor:
    """Lay the interleaved sub-maps of a map side by side, with zeros between them.

    Args:
        x: (N, C, H, W).
        dilation: d, the step of the sub-maps.
        columns: 1, d or d * d.

    Returns:
        (N, C, d * d / columns * (h + 1), columns * (w + 1)), h = ceil(H / d) and w = ceil(W / d).
        The sub-maps ``x[:, :, i::d, j::d]`` follow each other row by row, j before i.
    """
    x = F.pad(x, (0, -x.shape[3] % dilation, 0, -x.shape[2] % dilation))
    x = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))  # N, C, h, d, w, d
    height, width = x.shape[2], x.shape[4]
    rows = dilation**2 // columns
    mosaic = x.new_empty(*x.shape[:2], rows * (height + 1), columns * (width + 1))
    maps = sub_maps(mosaic, dilation, columns)
    maps[..., :height, :width] = x.permute(0, 1, 3, 5, 2, 4)
    maps[..., height, :] = 0
    maps[..., width] = 0
    return mosaic


def from_mosaic(x: Tensor, dilation: int, columns: int, size: Sequence[int]) -> Tensor:
    """Undo :func:`to_mosaic`: mosaic -> (N, C, H, W), with ``size`` = (H, W)."""
    maps = sub_maps(x, dilation, columns)[..., :-1, :-1]
    x = maps.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)
    return x[:, :, : size[0], : size[1]]


def sub_maps(mosaic: Tensor, dilation: int, columns: int) -> Tensor:
    """A view of a mosaic as (N, C, i, j, h + 1, w + 1), zeros included.

    Raises:
        ValueError: If there are not 1, d or d * d columns.
    """
    if columns == 1:
        return mosaic.unflatten(2, (dilation, dilation, -1))
    if columns == dilation:
        x = mosaic.unflatten(3, (dilation, -1)).unflatten(2, (dilation, -1))
        return x.permute(0, 1, 2, 4, 3, 5)
    if columns == dilation**2:
        return mosaic.unflatten(3, (dilation, dilation, -1)).permute(0, 1, 3, 4, 2, 5)
    raise ValueError(f'columns={columns} must be 1, {dilation} or {dilation**2}')


def run_on_mosaic(layers: Layers, x: Tensor, dilation: int, columns: int) -> Tensor:
    """As :func:`mmseg_repvgg.reparam.dilation.run_on_sub_maps`, on a mosaic.

    The zeros between the sub-maps are the padding of 3x3 convs; larger kernels would see the
    neighbour. What the layers give is changed in place, so that this way is not for gradients.
    """
    size = x.shape[2:]
    x = to_mosaic(x, dilation, columns)
    for position, layer in enumerate(layers, start=1):
        x = layer(x)
        if position < len(layers):
            separate(x, dilation, columns, size)
    return from_mosaic(x, dilation, columns, size)


def separate(mosaic: Tensor, dilation: int, columns: int, size: Sequence[int]) -> None:
    """Set all that is not of a sub-map to zero, in place."""
    height, width = size
    maps = sub_maps(mosaic, dilation, columns)
    for i in range(dilation):
        maps[:, :, i, :, -(-(height - i) // dilation) :] = 0
        maps[:, :, :, i, :, -(-(width - i) // dilation) :] = 0
