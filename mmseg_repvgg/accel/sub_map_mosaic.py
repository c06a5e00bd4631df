"""The interleaved sub-maps of a dilated run as one map, with zeros between them.

What :mod:`mmseg_repvgg.reparam.dilation` puts into a batch lies here side by side, for convolutions
that are faster on one large map. The d * d sub-maps of ceil(H / d) x ceil(W / d) pixels are laid in
1, d or d * d columns. Each has a row of zeros below it and a column of zeros on its right; where
there is one column or one row of them, the padding of the convolution does for the latter.
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
    height, width = (-(-length // dilation) for length in size)

    def tiles(columns: int) -> int:
        rows, (below, beside) = dilation**2 // columns, _gaps(dilation, columns)
        down, across = rows * (height + below), columns * (width + beside)
        return -(-down // tile) * -(-across // tile)

    return min((dilation, 1, dilation**2), key=tiles)  # of equal ones the squarest


def to_mosaic(x: Tensor, dilation: int, columns: int) -> Tensor:
    """Lay the interleaved sub-maps of a map side by side, with zeros between them.

    Args:
        x: (N, C, H, W).
        dilation: d, the step of the sub-maps.
        columns: 1, d or d * d.

    Returns:
        (N, C, d * d / columns * h', columns * w'), where h' is h = ceil(H / d) and the row of zeros
        if there is one, w' likewise. The sub-maps ``x[:, :, i::d, j::d]`` follow each other row by
        row, j before i.
    """
    x = F.pad(x, (0, -x.shape[3] % dilation, 0, -x.shape[2] % dilation))
    x = x.unflatten(3, (-1, dilation)).unflatten(2, (-1, dilation))  # N, C, h, d, w, d
    height, width = x.shape[2], x.shape[4]
    rows, (below, beside) = dilation**2 // columns, _gaps(dilation, columns)
    mosaic = x.new_empty(*x.shape[:2], rows * (height + below), columns * (width + beside))
    maps = sub_maps(mosaic, dilation, columns)
    maps[..., :height, :width] = x.permute(0, 1, 3, 5, 2, 4)
    maps[..., height:, :].zero_()
    maps[..., width:].zero_()
    return mosaic


def from_mosaic(x: Tensor, dilation: int, columns: int, size: Sequence[int]) -> Tensor:
    """Undo :func:`to_mosaic`: mosaic -> (N, C, H, W), with ``size`` = (H, W)."""
    maps = sub_maps(x, dilation, columns)
    out = x.new_empty(*x.shape[:2], *size)
    whole, rest = divmod(size[1], dilation)
    for i in range(dilation):
        rows = out[:, :, i::dilation]
        row_maps = maps[:, :, i, :, : rows.shape[2]]  # N, C, j, h, w
        pixels = rows[..., : whole * dilation].unflatten(3, (whole, dilation))
        pixels.copy_(row_maps[..., :whole].permute(0, 1, 3, 4, 2))
        if rest:
            rows[..., whole * dilation :] = row_maps[:, :, :rest, :, whole].transpose(2, 3)
    return out


def sub_maps(mosaic: Tensor, dilation: int, columns: int) -> Tensor:
    """A view of a mosaic as (N, C, i, j, h', w'), zeros included.

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
    heights, widths = ([-(-(n - i) // dilation) for i in range(dilation)] for n in size)
    maps = sub_maps(mosaic, dilation, columns)
    maps[..., heights[0] :, :].zero_()
    maps[..., widths[0] :].zero_()
    for i in range(dilation):  # those that are smaller than the first
        maps[:, :, i, :, heights[i] : heights[0]].zero_()
        maps[:, :, :, i, :, widths[i] : widths[0]].zero_()


def _gaps(dilation: int, columns: int) -> tuple[int, int]:
    """Rows of zeros below and columns of zeros beside a sub-map."""
    return int(columns < dilation**2), int(columns > 1)
