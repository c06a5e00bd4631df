"""Conv-BN -> conv with bias (paper eq. 2-4), in decode heads and baseline backbones.

All arithmetic is in float64, and the result is cast back once. So the fused network differs from
the unfused one only by the rounding of its own convolutions.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from mmseg_repvgg.reparam.module_hooks import computed_weights, has_hooks

PLAIN_FORWARDS: set[Any] = {_BatchNorm.forward, nn.SyncBatchNorm.forward}
"""Forward functions of plain BatchNorms; other modules may add theirs."""


def to_float64(tensor: Tensor) -> Tensor:
    """Cast to float64, on the CPU where the device has no float64 (Apple's MPS)."""
    device = 'cpu' if tensor.device.type == 'mps' else tensor.device
    return tensor.to(device=device, dtype=torch.float64)


def is_plain_batchnorm(norm: Any) -> bool:
    """Whether ``norm`` is a BatchNorm or SyncBatchNorm that does nothing else.

    Subclasses may do more: timm's ``BatchNormAct2d`` holds an activation.
    """
    return isinstance(norm, _BatchNorm) and type(norm).forward in PLAIN_FORWARDS


def batchnorm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Write inference-time BN as ``x * scale + shift`` (eq. 2).

    Args:
        norm: A BatchNorm of any kind (SyncBatchNorm included) over C channels.

    Returns:
        ``scale`` and ``shift``, each (C,) float64.

    Raises:
        ValueError: If ``norm`` is not a plain BatchNorm, has no running statistics, or has a
            running_var + eps that is not positive.
    """
    if not is_plain_batchnorm(norm):
        raise ValueError(
            f'only BatchNorm can be fused into a conv, not {type(norm).__name__}; '
            "use norm_cfg=dict(type='BN') or dict(type='SyncBN')"
        )
    assert isinstance(norm, _BatchNorm)
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError(
            'a BatchNorm with track_running_stats=False depends on its batch and cannot be fused'
        )
    mean, var = to_float64(norm.running_mean), to_float64(norm.running_var) + norm.eps
    if not bool((var > 0).all()):
        raise ValueError(
            f'running_var + eps of a BatchNorm has the value {var.min().item():.3g}; it must be '
            'positive. The checkpoint is damaged or training diverged'
        )
    gamma = torch.ones_like(var) if norm.weight is None else to_float64(norm.weight)
    beta = torch.zeros_like(var) if norm.bias is None else to_float64(norm.bias)
    scale = gamma / var.sqrt()
    return scale, beta - mean * scale


def fold_batchnorm(weight: Tensor, bias: Tensor | None, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the conv that equals a conv followed by BN (eq. 3-4).

    Args:
        weight: (C_out, C_in / groups, kh, kw) of the conv.
        bias: (C_out,) of the conv, or None.
        norm: The BatchNorm over its C_out channels.

    Returns:
        Kernel like ``weight`` and bias (C_out,), both float64.

    Raises:
        ValueError: As :func:`batchnorm_scale_shift`.
    """
    scale, shift = batchnorm_scale_shift(norm)
    kernel = to_float64(weight) * scale[:, None, None, None]
    return kernel, shift if bias is None else shift + to_float64(bias) * scale


def conv_like(conv: nn.Conv2d, kernel: Tensor, bias: Tensor) -> nn.Conv2d:
    """A conv with this kernel and bias, and the geometry, dtype and device of ``conv``.

    No random number is drawn: fusing during training must not change what follows.

    Raises:
        ValueError: If a parameter is NaN or infinite, or too large for the dtype.
    """
    if not (bool(kernel.isfinite().all()) and bool(bias.isfinite().all())):
        raise ValueError(
            'fusing gives NaN or infinite weights: the checkpoint is damaged or training diverged'
        )
    like, trains = conv.weight, any(p.requires_grad for p in conv.parameters())
    for name, tensor in (('weight', kernel), ('bias', bias)):
        if not bool(tensor.to(like).isfinite().all()):
            raise ValueError(
                f'fusing gives a {name} of {tensor.abs().max().item():.3g}, above the largest '
                f'{like.dtype}, {torch.finfo(like.dtype).max:.3g}: fuse the model in float32 '
                '(model.float()), and run it in float32 or bfloat16'
            )
    fused = conv_of(
        kernel.to(like),
        bias.to(like),
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        groups=conv.groups,
        padding_mode=conv.padding_mode,
    )
    return fused.requires_grad_(trains).train(conv.training)


def conv_of(kernel: Tensor, bias: Tensor | None, groups: int = 1, **geometry: Any) -> nn.Conv2d:
    """A conv with these parameters; no random number is drawn.

    Args:
        kernel: (C_out, C_in / groups, kh, kw).
        bias: (C_out,) or None.
        groups: Groups of the conv.
        **geometry: Other arguments of ``nn.Conv2d``.
    """
    out_channels, per_group, *size = kernel.shape
    conv = nn.Conv2d(
        per_group * groups,
        out_channels,
        tuple(size),  # type: ignore[arg-type]
        groups=groups,
        bias=bias is not None,
        device='meta',
        **geometry,
    )
    conv.weight = nn.Parameter(kernel.detach())
    conv.bias = None if bias is None else nn.Parameter(bias.detach())
    return conv


def fuse_batchnorms(model: nn.Module) -> int:
    """Fuse every conv-BN pair whose dataflow is known; in place.

    Known pairs: mmcv's ``ConvModule`` that applies its norm right after its conv; a BatchNorm that
    follows a conv in an ``nn.Sequential``; ``conv1``/``norm1``, ``conv2``/``norm2``, ... of
    OpenMMLab's ResNet blocks and stems. Other pairs are left unchanged, and so are convs and
    norms that are used in several places, have hooks, or whose class does more. Weights with
    pruning, spectral norm or weight norm are fused with their values in eval mode.

    The branches of RepVGG blocks are left to
    :func:`mmseg_repvgg.reparam.branches.fuse_branches`, unless the kind of block cannot be fused.

    Args:
        model: Any module, in any mode.

    Returns:
        The number of pairs fused.

    Raises:
        ValueError: As :func:`fold_batchnorm` and :func:`conv_like`; the model is then unchanged.
    """
    blocks = [
        m
        for m in model.modules()
        if hasattr(m, 'get_equivalent_kernel_bias') and not getattr(m, 'cannot_fuse', '')
    ]
    branches = {part for block in blocks for part in block.modules()}
    occurrences = Counter(child for m in model.modules() for child in m._modules.values())
    fused: list[tuple[Any, str, str, nn.Conv2d]] = []
    with computed_weights(model):
        for module in [m for m in model.modules() if m not in branches]:
            for names in _conv_norm_pairs(module):
                conv, norm = (getattr(module, name) for name in names)
                if (
                    parametrize.type_before_parametrizations(conv) is nn.Conv2d
                    and is_plain_batchnorm(norm)
                    and occurrences[conv] == occurrences[norm] == 1
                    and not (has_hooks(conv) or has_hooks(norm))
                ):
                    kernel, bias = fold_batchnorm(conv.weight, conv.bias, norm)
                    fused.append((module, *names, conv_like(conv, kernel, bias)))
    for module, conv_name, norm_name, conv in fused:
        setattr(module, conv_name, conv.train(module.training))
        setattr(module, norm_name, nn.Identity())
        if hasattr(module, 'turn_on_efficient_conv_bn_eval'):  # mmcv's, which needs the norm
            module.turn_on_efficient_conv_bn_eval(False)
    return len(fused)


def _conv_norm_pairs(module: Any) -> list[tuple[str, str]]:
    """Names of the (conv, norm) children that ``module`` is known to run one after the other."""
    if 'forward' in vars(module):
        return []
    # ConvModule is identified by its forward, because mmcv may not be installed
    if type(module).forward.__qualname__ == 'ConvModule.forward':
        adjacent = ('conv', 'norm') in pairwise(module.order)
        return [('conv', module.norm_name)] if module.with_norm and adjacent else []
    if type(module).forward is nn.Sequential.forward:
        return list(pairwise(module._modules))
    # ResNet and its blocks keep the registered name of norm<i> in norm<i>_name
    numbered = (
        (f'conv{i}', getattr(module, f'norm{i}_name'))
        for i in range(1, 4)
        if hasattr(module, f'norm{i}_name')
    )
    return [(conv, norm) for conv, norm in numbered if {conv, norm} <= set(module._modules)]
