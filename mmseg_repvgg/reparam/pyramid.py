"""Pooling-pyramid heads without pooling, upsampling and the wide concat, exactly.

PSPNet's head (mmseg's ``PSPHead``; the top of ``UPerHead``) pools its input x to b x b for several
b, reduces each by a 1x1 conv, upsamples the results to the size of x, concatenates them with x and
applies a 3x3 conv, the bottleneck. Per axis, adaptive average pooling is a product with a constant
matrix P (b, n), and bilinear upsampling one with U (n, b). The bottleneck's output from scale b,

    sum over taps (ty, tx) of W[:, :, ty, tx] (U p U^T) shifted by the tap,

is linear in the b * b pooled vectors p: with q[ty, tx, :, jy, jx] = W[:, :, ty, tx] p[:, jy, jx] it
is V q V^T, where V (n, 3 b) holds U shifted by each tap, with zeros from outside the map. For
RepVGG-B2 at 713x713 this removes 76 of the head's 172 GMACs, and the concat of 4608 channels.

The pyramid of our ``UAFMHead`` (``SPPM``) adds its maps and has no wide bottleneck. There only the
pooling becomes a product with P, which inference runtimes compute for every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from mmseg_repvgg.reparam.batchnorm import conv_of
from mmseg_repvgg.reparam.module_hooks import has_hooks
from mmseg_repvgg.reparam.open_size import has_open_size

TAPS = 3
"""Size of the bottleneck's kernel, per axis."""

KNOWN_METHODS = (('PSPHead', '_forward_feature'), ('UPerHead', 'psp_forward'))
"""The class and method of mmseg's heads that only apply the bottleneck to the concat."""


Options = tuple[torch.device, torch.dtype]
EXACT: Options = (torch.device('cpu'), torch.float64)
"""Where constant matrices are computed, before they are converted to the dtype of the input."""


class Axis(NamedTuple):
    """The constant matrices of one axis of n pixels."""

    pool: list[Tensor]  # P (b, n) per scale b
    spread: list[Tensor]  # V (n, TAPS * b) per scale b


def pooling_matrix(length: int, scale: int, options: Options = EXACT) -> Tensor:
    """Adaptive average pooling of ``length`` pixels to ``scale``: (scale, length).

    Window i holds the pixels from floor(i n / b) up to ceil((i + 1) n / b) (PyTorch's definition of
    ``adaptive_avg_pool1d``), here compared as integers, which a graph of any length can compute.
    """
    device, dtype = options
    window = torch.arange(scale, device=device)[:, None]
    pixel = torch.arange(length, device=device)
    inside = ((pixel + 1) * scale > window * length) & (pixel * scale < (window + 1) * length)
    ones = inside.to(dtype)
    return ones / ones.sum(1, keepdim=True)


def upsampling_matrix(
    scale: int, length: int, align_corners: bool, options: Options = EXACT
) -> Tensor:
    """Linear interpolation of ``scale`` values to ``length`` pixels: (length, scale).

    Pixel y lies at y (b - 1) / (n - 1) if the corners are aligned, else at (y + 1/2) b / n - 1/2,
    not beyond the first and the last value. The places are kept as integers times a unit.
    """
    device, dtype = options
    pixel = torch.arange(length, device=device)[:, None]
    value = torch.arange(scale, device=device)
    if align_corners:
        unit = torch.full((1, 1), length - 1, device=device).clamp(min=1)
        place = pixel * (scale - 1)
    else:
        unit = torch.full((1, 1), 2 * length, device=device)
        place = ((2 * pixel + 1) * scale - length).clamp(min=0).minimum(unit * (scale - 1))
    return (unit - (place - value * unit).abs()).clamp(min=0).to(dtype) / unit.to(dtype)


def shifted_by_taps(matrix: Tensor) -> Tensor:
    """Rows (n, b) as each tap of a 3-tap conv with zero padding sees them: (n, 3 * b)."""
    padded = F.pad(matrix, (0, 0, 1, 1))
    return torch.cat([padded[:-2], padded[1:-1], padded[2:]], dim=1)


@torch.fx.wrap
def axis_matrices(x: Tensor, scales: Sequence[int], align_corners: bool) -> tuple[Axis, Axis]:
    """The matrices of the vertical and the horizontal axis of ``x`` (N, C, H, W)."""

    def of_axis(length: int, options: Options) -> Axis:
        pool = [pooling_matrix(length, scale, options) for scale in scales]
        upsampling = [upsampling_matrix(b, length, align_corners, options) for b in scales]
        return Axis([m.to(x) for m in pool], [shifted_by_taps(m).to(x) for m in upsampling])

    if has_open_size(x):  # computed in the graph, in a dtype that all runtimes support
        options = x.device, torch.promote_types(x.dtype, torch.float32)
        return of_axis(x.shape[2], options), of_axis(x.shape[3], options)
    with torch.inference_mode(False), torch.no_grad():  # to be usable in all modes
        return of_axis(x.shape[2], EXACT), of_axis(x.shape[3], EXACT)


class WithAxes(nn.Module):
    """A module that needs the matrices of its input's axes; it sets the two attributes."""

    scales: list[int]
    align_corners: bool

    def __init__(self) -> None:
        super().__init__()
        self._axes: dict[tuple, tuple[Axis, Axis]] = {}

    def _matrices(self, x: Tensor) -> tuple[Axis, Axis]:
        """The matrices for the size, dtype and device of ``x``; the last ones are cached.

        Threads may use several sizes at once, so the cached entry is replaced, never changed. A
        graph of ``torch.fx``, or one for all sizes, computes them in every call.
        """
        if isinstance(x, torch.fx.Proxy) or has_open_size(x):
            return axis_matrices(x, self.scales, self.align_corners)
        key = (*x.shape[2:], x.dtype, x.device)
        axes = self._axes.get(key)
        is_fake = isinstance(x, FakeTensor) and not torch.compiler.is_exporting()
        if axes is None or is_fake:
            axes = axis_matrices(x, self.scales, self.align_corners)
            if not torch.compiler.is_compiling() and type(axes[0].pool[0]) is Tensor:
                self._axes = {key: axes}
        return axes


class MatrixPool(WithAxes):
    """Adaptive average pooling as products with constant matrices: (N, C, H, W) -> (N, C, b, b).

    Args:
        scale: The side b of the pooled map.
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scales, self.align_corners = [scale], False

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, scale, scale)."""
        axes = self._matrices(x)
        return axes[0].pool[0] @ (x @ axes[1].pool[0].T)


class PyramidBottleneck(WithAxes):
    """The pyramid and the bottleneck of a head in one: (N, C, H, W) -> (N, C_out, H, W).

    Args:
        pyramid: mmseg's ``PPM``: per scale an adaptive pooling and a 1x1 ConvModule.
        bottleneck: The ConvModule over the concat of the input and the upsampled scales.
        align_corners: As in the upsampling.
    """

    def __init__(self, pyramid: Any, bottleneck: Any, align_corners: bool) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.scales = [_scale(pool) for pool, _ in pyramid]
        reduce = [conv for _, conv in pyramid]
        self.reduce = nn.ModuleList(reduce)
        whole = bottleneck.conv
        widths = [module.conv.out_channels for module in reduce]
        kernels = whole.weight.detach().split([whole.in_channels - sum(widths), *widths], dim=1)
        self.conv = conv_of(kernels[0].clone(), whole.bias, padding=1)
        self.spread = nn.ModuleList(
            conv_of(kernel.permute(0, 2, 3, 1).reshape(-1, kernel.shape[1], 1, 1), None)
            for kernel in kernels[1:]
        )
        for part in (self.conv, self.spread):
            part.requires_grad_(whole.weight.requires_grad)
        self.norm = bottleneck.norm if bottleneck.with_norm else nn.Identity()
        self.activate = bottleneck.activate if bottleneck.with_activation else nn.Identity()
        self.training = bottleneck.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C_out, H, W)."""
        axes = self._matrices(x)
        vertical, horizontal = axes[0], axes[1]  # without unpacking, for torch.fx
        pooled_along_x = (x @ torch.cat(horizontal.pool).T).split(self.scales, dim=3)
        rows = []
        for i in range(len(self.scales)):
            pooled = vertical.pool[i] @ pooled_along_x[i]
            q = self.spread[i](self.reduce[i](pooled))  # N, C_out * ty * tx, jy, jx
            q = q.unflatten(1, (-1, TAPS, TAPS)).permute(0, 1, 2, 4, 3, 5)
            q = q.flatten(2, 3).flatten(3, 4)  # N, C_out, ty * jy, tx * jx
            rows.append(q @ horizontal.spread[i].T)
        from_pyramid = torch.cat(vertical.spread, dim=1) @ torch.cat(rows, dim=2)
        return self.activate(self.norm(self.conv(x) + from_pyramid))


class NoPyramid(nn.Module):
    """Replaces a head's pyramid and returns no maps: the bottleneck computes its own."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Nothing to concatenate to ``x``."""
        return []


def linearize_pyramids(model: nn.Module) -> int:
    """Replace the pyramid and bottleneck of every head that has them; in place.

    A head is identified by the method that it inherits from mmseg's ``PSPHead`` or ``UPerHead``; of
    our ``UAFMHead``, the poolings of ``SPPM`` are replaced. A head with other layers (a bottleneck
    that is not a 3x3 conv), or with hooks on what would be replaced, is left unchanged.

    Args:
        model: Any module.

    Returns:
        The number of heads changed: 0 if there are none.
    """
    heads: list[Any] = [module for module in model.modules() if _has_pyramid(module)]
    merged = [PyramidBottleneck(h.psp_modules, h.bottleneck, h.align_corners) for h in heads]
    for head, bottleneck in zip(heads, merged, strict=True):
        head.psp_modules, head.bottleneck = NoPyramid(), bottleneck
        if not hasattr(head, 'psp_forward'):
            head._forward_feature = partial(_without_concat, head)
    added: list[Any] = [module for module in model.modules() if _is_added_pyramid(module)]
    for pyramid in added:
        for stage in pyramid.stages:
            stage[0] = MatrixPool(_scale(stage[0])).train(stage[0].training)
    return len(heads) + len(added)


def _without_concat(head: Any, inputs: Any) -> Tensor:
    """As ``PSPHead._forward_feature``, without its concat, which would only copy the one map."""
    return head.bottleneck(head._transform_inputs(inputs))


def _has_pyramid(head: Any) -> bool:
    is_known = any(
        getattr(getattr(type(head), name, None), '__qualname__', '') == f'{kind}.{name}'
        and name not in vars(head)
        for kind, name in KNOWN_METHODS
    )
    pyramid: Any = getattr(head, 'psp_modules', None)
    bottleneck = getattr(head, 'bottleneck', None)
    conv = getattr(bottleneck, 'conv', None)
    return (
        is_known
        and type(pyramid).__name__ == 'PPM'
        and all(_is_scale(part) for part in pyramid)
        and type(conv) is nn.Conv2d
        and 'weight' in conv._parameters  # and is not computed before each call
        and (conv.kernel_size, conv.stride, conv.padding) == ((TAPS, TAPS), (1, 1), (1, 1))
        and (conv.dilation, conv.groups, conv.padding_mode) == ((1, 1), 1, 'zeros')
        and tuple(getattr(bottleneck, 'order', ())) == ('conv', 'norm', 'act')
        and not any(map(has_hooks, (pyramid, *pyramid, bottleneck, conv)))
    )


def _is_added_pyramid(module: Any) -> bool:
    """Whether it is the ``SPPM`` of our ``UAFMHead``, with poolings that can be replaced."""
    kind = type(module)
    is_known = kind.__name__ == 'SPPM' and kind.__module__ == 'mmseg_repvgg.models.uafm_head'
    return (
        is_known
        and all(map(_is_scale, module.stages))
        and not any(map(has_hooks, (module, module.stages, *module.stages)))
    )


def _is_scale(part: Any) -> bool:
    """Whether it is a pooling and a ConvModule."""
    return (
        isinstance(part, nn.Sequential)
        and len(part) == 2
        and _scale(part[0]) > 0
        and not has_hooks(part[0])
        and isinstance(getattr(part[1], 'conv', None), nn.Conv2d)
    )


def _scale(pool: Any) -> int:
    """Side of the pooled map, or 0 for anything but square adaptive average pooling."""
    size = getattr(pool, 'output_size', None)
    if not isinstance(pool, nn.AdaptiveAvgPool2d):
        return 0
    sides = size if isinstance(size, tuple) else (size, size)
    return int(sides[0] or 0) if sides[0] == sides[1] else 0
