"""3x3 convs by Winograd's minimal filtering on the CPU, with the NNPACK that PyTorch ships.

A 3x3 conv of stride 1 needs 9 multiplications per output; by Winograd it needs 2.25 (F(2x2, 3x3),
which the paper's section 2.4 counts) or, with tiles of 6x6 as here, 1.78. PyTorch's CPU convs do
not use it. It is exact in exact arithmetic, but rounds a little more. If an input value is NaN or
infinite, pixels of all 6x6 tiles that read it become NaN, not only the 3x3 pixels around it.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from mmseg_repvgg.accel import nnpack
from mmseg_repvgg.accel.memory_limit import memory_limit
from mmseg_repvgg.accel.sub_map_mosaic import run_on_mosaic
from mmseg_repvgg.reparam.dilation import (
    Layers,
    SubMapConv2d,
    SubMapSequential,
    run_on_sub_maps,
)
from mmseg_repvgg.reparam.module_hooks import has_hooks

MIN_PIXELS_FOR_WINOGRAD = 12 * 12
"""Smaller maps are faster with the plain conv."""
SHARE_OF_MEMORY = 0.25
"""Largest share of the memory of a process that transformed kernels may take."""


def plain_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1, relu: bool = False
) -> Tensor:
    """As :func:`winograd_conv3x3`, by PyTorch's conv."""
    out = F.conv2d(x, weight, bias, padding=1, groups=groups)
    return (out.relu() if relu else out).contiguous()


@torch.library.custom_op(
    'mmseg_repvgg::winograd_conv3x3',
    mutates_args=(),
    schema='(Tensor x, Tensor weight, Tensor? bias=None, int groups=1, bool relu=False) -> Tensor',
)
def winograd_conv3x3(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, groups: int = 1, relu: bool = False
) -> Tensor:
    """A 3x3 conv of stride 1 and padding 1: by Winograd if possible, else by PyTorch's conv.

    Winograd needs float32 on the CPU. The result depends only on the arguments: kept transformed
    kernels are used only if ``weight`` has not changed. The operator has no gradients, and loses
    the tangents of forward-mode differentiation: :class:`WinogradConv2d` calls it only if neither
    is needed.

    Args:
        x: (N, C_in, H, W) or (C_in, H, W), in any memory format.
        weight: (C_out, C_in / groups, 3, 3).
        bias: (C_out,) or None.
        groups: Groups of the conv.
        relu: Whether a ReLU follows.

    Returns:
        (N, C_out, H, W) or (C_out, H, W), contiguous.

    Raises:
        RuntimeError: As PyTorch's conv, if the arguments do not fit each other.
    """
    if _winograd_takes(x, weight, bias, groups) and nnpack.is_available():
        kernels = _transformed_kernels(weight, groups)
        if kernels is not None:
            bias = None if bias is None else bias.contiguous()
            return nnpack.convolve(x.contiguous(), kernels, bias, relu)
    return plain_conv3x3(x, weight, bias, groups, relu)


winograd_conv3x3.register_fake(plain_conv3x3)


@winograd_conv3x3.register_vmap
def _vmap(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Tensor, int]:
    """One call per entry of the batch."""
    batched = list(zip(args, in_dims, strict=True))
    outs = [
        winograd_conv3x3(*[arg if dim is None else arg.select(dim, i) for arg, dim in batched])
        for i in range(info.batch_size)
    ]
    return torch.stack(outs), 0


@register_flop_formula(torch.ops.mmseg_repvgg.winograd_conv3x3)
def _flops(x: Any, weight: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """FLOPs of the plain conv, as PyTorch counts them: two per multiply-add."""
    return 2 * torch.Size(out_shape).numel() * torch.Size(weight[1:]).numel()


def _winograd_takes(x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> bool:
    """Whether NNPACK can take the arguments; it does not check them itself."""
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        all(
            t.device.type == 'cpu' and t.dtype == torch.float32 and t.layout == torch.strided
            for t in tensors
        )
        and x.dim() == weight.dim() == 4
        and groups > 0
        and x.shape[1] == weight.shape[1] * groups
        and weight.shape[0] % groups == 0
        and weight.shape[2:] == (3, 3)
        and (bias is None or bias.shape == weight.shape[:1])
        and x.numel() > 0
        and weight.numel() > 0
        and x.shape[2] * x.shape[3] >= MIN_PIXELS_FOR_WINOGRAD
    )


class _KeptKernels(NamedTuple):
    """The transformed kernels of each group of a weight, and the values they were made from."""

    values: Tensor
    groups: int
    kernels: list[Tensor]


_kept: dict[int, tuple[_KeptKernels, weakref.ref]] = {}
"""By the id of a weight, until it is deleted. An entry is valid if its values are the weight's."""


def _transformed_kernels(weight: Tensor, groups: int) -> Sequence[Tensor] | None:
    """The transformed kernel of each group; None if there is no room to keep them.

    The kept values are compared with the weight, so every change of it is noticed. This takes 0.4 %
    of the time of a call on a map of 90x90, and 2 % at 28x28.
    """
    key, values = id(weight), weight.detach().contiguous()
    kept, _ = _kept.get(key, (None, None))
    if (
        kept is not None
        and (kept.groups, kept.values.shape) == (groups, values.shape)
        and nnpack.are_equal_bytes(kept.values, values)
    ):
        return kept.kernels
    kept = None
    _kept.pop(key, None)  # before new ones are made: they are large
    others = sum(_kept_bytes(entry.values) for entry, _ in tuple(_kept.values()))
    if others + _kept_bytes(weight) > SHARE_OF_MEMORY * _memory_limit():
        return None
    values = values.clone()
    kernels = [nnpack.transform_kernel(part) for part in values.chunk(groups)]
    made = _KeptKernels(values, groups, kernels)
    _kept[key] = (made, weakref.ref(weight, functools.partial(_kept.pop, key)))
    return kernels


def _kept_bytes(weight: Tensor) -> int:
    """Bytes that the transformed kernels of a weight take, and its copy: 64 and 9 values each."""
    return weight.numel() // 9 * (nnpack.VALUES_PER_KERNEL + 9) * 4


_memory_limit = functools.cache(memory_limit)


def _is_plain_inference(x: Tensor) -> bool:
    """Whether only values are needed: no gradient, tangent, graph or other dtype."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled('cpu')
        or type(x) is not Tensor  # traced by torch.fx, fake, or of a class with its own convs
        or forward_ad.unpack_dual(x).tangent is not None
    )


class WinogradConv2d(nn.Conv2d):
    """A 3x3 conv that uses Winograd under ``torch.no_grad()`` or ``inference_mode``.

    It is the plain conv if gradients are enabled, while a graph is traced, compiled or exported,
    under autocast, and if weight or bias is not an ordinary parameter (``functional_call``,
    pruning).
    """

    relu = False  # whether it applies the ReLU of its block

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W)."""
        if (
            _is_plain_inference(x)
            and type(self.weight) is nn.Parameter
            and type(self.bias) in (nn.Parameter, type(None))
            and _is_rewritable(self)  # attributes may have changed
        ):
            return winograd_conv3x3(x, self.weight, self.bias, self.groups, self.relu)
        out = nn.Conv2d.forward(self, x)
        return out.relu() if self.relu else out

    def _apply(self, *args: Any, **kwargs: Any) -> nn.Module:
        _kept.pop(id(self.weight), None)  # the weight changes its dtype or device, perhaps for good
        return super()._apply(*args, **kwargs)


class WinogradSubMapConv2d(SubMapConv2d, WinogradConv2d):
    """A :class:`SubMapConv2d` whose sub-maps are convolved by Winograd."""

    def convolve(self, x: Tensor) -> Tensor:
        """As :meth:`SubMapConv2d.convolve`."""
        return WinogradConv2d.forward(self, x)

    def convolve_dilated(self, x: Tensor) -> Tensor:
        """As :meth:`SubMapConv2d.convolve_dilated`."""
        out = super().convolve_dilated(x)
        return out.relu() if self.relu else out


def use_winograd(model: nn.Module) -> int:
    """Compute every stride-1 3x3 conv of ``model`` by Winograd where possible; in place.

    It changes convs without dilation, and those that
    :func:`mmseg_repvgg.reparam.dilation.undilate` rewrote. :class:`WinogradConv2d` lists when they
    still run as plain convs. The ReLU of a fused RepVGG block becomes part of its conv, unless conv
    or ReLU have hooks: register hooks before.

    Args:
        model: Any module.

    Returns:
        The number of convs changed; 0, with a warning, where NNPACK cannot be used.
    """
    if not nnpack.is_available():
        warnings.warn(
            "the rewrite 'winograd' has no effect here: this PyTorch has no NNPACK, or NNPACK does "
            'not support this processor (python -m mmseg_repvgg.doctor names both)',
            stacklevel=2,
        )
        return 0
    count = 0
    for module in model.modules():
        if isinstance(module, (SubMapConv2d, SubMapSequential)):
            module.run = run_dilated
        if type(module) in _WINOGRAD and _is_rewritable(module):
            module.__class__ = _WINOGRAD[type(module)]
            count += 1
    _absorb_relus(model)
    return count


def run_dilated(layers: Layers, x: Tensor, dilation: int) -> Tensor:
    """As :func:`run_on_sub_maps`, on one large map, which is faster than many small ones."""
    if _is_plain_inference(x) and x.device.type == 'cpu':
        return run_on_mosaic(layers, x, dilation)
    return run_on_sub_maps(layers, x, dilation)


_WINOGRAD: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: WinogradConv2d,
    SubMapConv2d: WinogradSubMapConv2d,
}


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


def _absorb_relus(model: nn.Module) -> None:
    """Let the convs of fused RepVGG blocks apply the ReLU after them, unless hooks are registered.

    PyTorch's threads keep spinning after a ReLU and slow down NNPACK's: 5 to 10 % of a layer's
    time.
    """
    uses = Counter(child for module in model.modules() for child in module._modules.values())
    for block in model.modules():
        conv, rest, act = (
            getattr(block, name, None) for name in ('branch_reparam', 'se_layer', 'act')
        )
        if (
            isinstance(conv, WinogradConv2d)
            and uses[conv] == 1
            and type(rest) is nn.Identity
            and type(act) is nn.ReLU
            and not any(has_hooks(module) for module in (conv, rest, act))
        ):
            conv.relu, block.act = True, nn.Identity()
