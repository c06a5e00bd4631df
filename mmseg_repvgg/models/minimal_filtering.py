"""3x3 convs that train with two thirds of the multiplications, on the CPU.

Winograd's minimal filtering F(2, 3) gives two outputs of a filter of three taps in the place of six
multiplications by four [Lavin and Gray, arXiv:1509.09308, eq. 5]. Here it runs down the columns: of
rows (0, 1, 2, 3) of a map it makes the four rows (0 - 2, 1 + 2, 2 - 1, 1 - 3), each of which is
convolved along the row by one of four 1x3 kernels: all of them one grouped conv of PyTorch. The
gradients of input and kernel are found in the same way. It is exact in exact arithmetic, and the
sums are so much shorter that it rounds no more than the conv does. With dilation d a column's rows
are those that lie d apart.

The form in two dimensions, which saves more multiplications, needs maps of four times the size, and
its larger tiles round ten times as much; in PyTorch's own functions it is slower than the conv.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmseg_repvgg.models.eager import is_on_cpu, is_transformed, is_unwatched
from mmseg_repvgg.models.freed_memory import is_kept

NARROWEST = 128
"""Channels of a group below which there is too little to multiply."""
SMALLEST = 2**18
"""Numbers of a batch of maps, for each group, below which the transforms cost what they save."""
FEWEST = 768
"""Pixels of a batch below which those of the kernels do."""
CHUNK = 6 * 2**20
"""Bytes of transformed maps at a time: more of them do not stay in a CPU's caches."""


def conv3x3(conv: Any, x: Tensor) -> Tensor:
    """``conv(x)``; with F(2, 3) where ``conv`` is a wide 3x3 conv that trains on the CPU.

    Without stride and bias, in single or double precision, for contiguous maps, and where nothing
    looks on: no hooks, no autocast, no ``torch.func``, no captured graph. Only in a process of
    which :func:`mmseg_repvgg.models.freed_memory.keep_freed_memory` was asked.

    Args:
        conv: Any module.
        x: (N, C_in, H, W).

    Returns:
        What ``conv`` gives.
    """
    if not (_is_plain(conv) and is_on_cpu(x, conv) and _pays(conv, x)):
        return conv(x)
    return _Conv3x3.apply(x, conv.weight, conv.dilation[0], conv.groups)


def _is_plain(conv: Any) -> bool:
    """Whether it is a 3x3 conv that keeps height and width, and no more than that."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride) == ((3, 3), (1, 1))
        and conv.padding == conv.dilation
        and conv.dilation[0] == conv.dilation[1]
        and conv.padding_mode == 'zeros'
        and conv.bias is None
        and conv.training
        and is_unwatched(conv)
    )


def _pays(conv: Any, x: Tensor) -> bool:
    return (
        is_kept()  # otherwise the maps it works in cost what it saves
        and min(conv.in_channels, conv.out_channels) >= NARROWEST * conv.groups
        and x.shape[1] == conv.in_channels
        and x.numel() >= max(SMALLEST * conv.groups, FEWEST * conv.in_channels)
        and torch.is_grad_enabled()
        and conv.weight.requires_grad
        and not is_transformed()
    )


class _Conv3x3(torch.autograd.Function):
    """A 3x3 conv of stride 1 whose padding is its dilation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int, groups: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dilation, ctx.groups = dilation, groups
        kernels = transform_kernel(weight)
        out = x.new_empty(x.shape[0], weight.shape[0], *x.shape[2:])
        share = _share(x, weight)
        for image, target in zip(x.split(share), out.split(share), strict=True):
            rows = transform_input(image, dilation)
            products = functional.conv2d(rows, kernels, **_geometry(dilation, groups))
            transform_output(products, dilation, target)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = [*ctx.needs_input_grad[:2], False]
        if torch.is_grad_enabled():  # a second derivative is wanted: let PyTorch know what of
            ring = [ctx.dilation] * 2
            found = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], ring, ring, False, [0, 0], ctx.groups, wanted
            )
            return *found[:2], None, None
        kernels = transform_kernel(weight)
        geometry = _geometry(ctx.dilation, ctx.groups)
        of_input = torch.empty_like(x) if wanted[0] else None
        of_kernels: Tensor | None = None
        share = _share(x, weight)
        for start in range(0, len(x), share):
            part = slice(start, start + share)
            rows = transform_input(x[part], ctx.dilation)
            found = torch.ops.aten.convolution_backward(
                transposed_output(gradient[part], ctx.dilation), rows, kernels, None, [1, 1],
                geometry['padding'], geometry['dilation'], False, [0, 0], geometry['groups'],
                wanted,
            )  # fmt: skip
            if of_input is not None:
                transposed_input(found[0], ctx.dilation, of_input[part])
            if wanted[1]:
                of_kernels = found[1] if of_kernels is None else of_kernels.add_(found[1])
        of_weight = None if of_kernels is None else transposed_kernel(of_kernels)
        return of_input, of_weight, None, None


def _geometry(dilation: int, groups: int) -> dict[str, Any]:
    """Of the 1x3 conv: the four transforms are groups of it."""
    return dict(padding=[0, dilation], dilation=[1, dilation], groups=4 * groups)


def _share(x: Tensor, weight: Tensor) -> int:
    """How many images are transformed at a time; every time the kernels are read once."""
    transformed, kernels = 2 * x.nbytes // len(x), 4 * weight.nbytes // 3
    return max(1, max(CHUNK, 2 * kernels) // transformed)


# The transforms, and each one's transpose, by which gradients go back. Rows of a map, 2 * d of them
# at a time, are a pair of d rows each: "even" and "odd".


def transform_input(x: Tensor, dilation: int) -> Tensor:
    """(N, C, H, W) -> (N, 4 * C, d * ceil(H / (2 * d)), W): B^T x."""
    even, odd = _pairs(_whole(x, dilation), dilation)
    batch, channels, count, length = even.shape
    out = x.new_empty(batch, 4, channels, count, length)
    first, second, third, fourth = out.unbind(1)
    torch.sub(odd[:, :, :-1], odd[:, :, 1:], out=first[:, :, 1:])
    torch.neg(odd[:, :, 0], out=first[:, :, 0])
    torch.add(even, odd, out=second)
    torch.sub(odd, even, out=third)
    torch.sub(even[:, :, :-1], even[:, :, 1:], out=fourth[:, :, :-1])
    fourth[:, :, -1] = even[:, :, -1]
    return out.view(batch, 4 * channels, count * dilation, x.shape[3])


def transposed_input(x: Tensor, dilation: int, out: Tensor) -> None:
    """Write B x into ``out`` (N, C, H, W), where x is (N, 4 * C, d * ceil(H / (2 * d)), W)."""
    whole = _target(out, dilation)
    even, odd = _pairs(whole, dilation)
    first, second, third, fourth = x.view(len(x), 4, -1, *even.shape[2:]).unbind(1)
    torch.sub(second, third, out=even).add_(fourth)
    even[:, :, 1:].sub_(fourth[:, :, :-1])
    torch.add(second, third, out=odd).sub_(first)
    odd[:, :, :-1].add_(first[:, :, 1:])
    _cut(whole, out)


def transform_kernel(weight: Tensor) -> Tensor:
    """(C_out, C_in, 3, 3) -> (4 * C_out, C_in, 1, 3): G w."""
    out = weight.new_empty(4, *weight.shape[:2], 3)
    first, second, third, fourth = out.unbind(0)
    above, middle, below = weight.unbind(2)
    first.copy_(above)  # in pieces of three; what follows is of one piece
    fourth.copy_(below)
    torch.add(first, fourth, out=second).div_(2)
    half = middle / 2
    torch.sub(second, half, out=third)
    second.add_(half)
    return out.view(-1, weight.shape[1], 1, 3)


def transposed_kernel(kernels: Tensor) -> Tensor:
    """(4 * C_out, C_in, 1, 3) -> (C_out, C_in, 3, 3): G^T w."""
    first, second, third, fourth = kernels.squeeze(2).unflatten(0, (4, -1)).unbind(0)
    out = kernels.new_empty(*first.shape[:2], 3, 3)
    above, middle, below = out.unbind(2)
    half = (second + third).div_(2)
    torch.add(first, half, out=above)
    torch.sub(half, third, out=middle)  # (second - third) / 2
    torch.add(fourth, half, out=below)
    return out


def transform_output(x: Tensor, dilation: int, out: Tensor) -> None:
    """Write A^T x into ``out`` (N, C, H, W), where x is (N, 4 * C, d * ceil(H / (2 * d)), W)."""
    whole = _target(out, dilation)
    even, odd = _pairs(whole, dilation)
    first, second, third, fourth = x.view(len(x), 4, -1, *even.shape[2:]).unbind(1)
    torch.add(first, second, out=even).add_(third)
    torch.sub(second, third, out=odd).sub_(fourth)
    _cut(whole, out)


def transposed_output(x: Tensor, dilation: int) -> Tensor:
    """(N, C, H, W) -> (N, 4 * C, d * ceil(H / (2 * d)), W): A x."""
    even, odd = _pairs(_whole(x, dilation), dilation)
    batch, channels, count, length = even.shape
    out = x.new_empty(batch, 4, channels, count, length)
    first, second, third, fourth = out.unbind(1)
    first.copy_(even)
    torch.add(even, odd, out=second)
    torch.sub(even, odd, out=third)
    torch.neg(odd, out=fourth)
    return out.view(batch, 4 * channels, count * dilation, x.shape[3])


def _pairs(x: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Views of the even and the odd rows, (N, C, H / (2 * d), d * W) each."""
    rows = x.view(*x.shape[:2], -1, 2, dilation * x.shape[3])
    return rows[:, :, :, 0], rows[:, :, :, 1]


def _whole(x: Tensor, dilation: int) -> Tensor:
    """``x`` with rows of zeros below until they make pairs."""
    missing = -x.shape[2] % (2 * dilation)
    return functional.pad(x, (0, 0, 0, missing)) if missing else x.contiguous()


def _target(out: Tensor, dilation: int) -> Tensor:
    """``out``, or a map with more rows if those of ``out`` make no pairs."""
    missing = -out.shape[2] % (2 * dilation)
    return out.new_empty(*out.shape[:2], out.shape[2] + missing, out.shape[3]) if missing else out


def _cut(whole: Tensor, out: Tensor) -> None:
    if whole is not out:
        out.copy_(whole[:, :, : out.shape[2]])
