"""Conv-BN -> conv with bias (paper eq. 2-4), in decode heads and baseline backbones.

All arithmetic is in float64 and cast back once, so that the fused network differs from the
unfused one by the rounding of its own convolutions only.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def to_float64(tensor: Tensor) -> Tensor:
    """Cast to float64, on the CPU where the device has no float64 (Apple's MPS)."""
    device = 'cpu' if tensor.device.type == 'mps' else tensor.device
    return tensor.to(device=device, dtype=torch.float64)


def batchnorm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Write inference-time BN as ``x * scale + shift`` (eq. 2).

    Args:
        norm: A BatchNorm of any kind (SyncBatchNorm included) over C channels.

    Returns:
        ``scale`` and ``shift``, each (C,) float64.

    Raises:
        ValueError: If ``norm`` is no BatchNorm, keeps no running statistics, or holds a variance
            that has no square root.
    """
    if not isinstance(norm, _BatchNorm):
        raise ValueError(
            f'only BatchNorm can be fused into a conv, not {type(norm).__name__}; '
            "use norm_cfg=dict(type='BN') or dict(type='SyncBN')"
        )
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
    """A conv with bias, of the geometry, dtype and device of ``conv``, with these parameters.

    No random number is drawn: fusing during training must not change what follows.

    Raises:
        ValueError: If a parameter is NaN or infinite.
    """
    if not (bool(kernel.isfinite().all()) and bool(bias.isfinite().all())):
        raise ValueError(
            'fusing gives NaN or infinite weights: the checkpoint is damaged or training diverged'
        )
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=True,
        padding_mode=conv.padding_mode,
        device='meta',
    )
    like, trains = conv.weight, conv.weight.requires_grad
    fused.weight = nn.Parameter(kernel.detach().to(like), requires_grad=trains)
    fused.bias = nn.Parameter(bias.detach().to(like), requires_grad=trains)
    return fused.train(conv.training)


def fuse_batchnorms(model: nn.Module) -> int:
    """Fuse every conv-BN pair whose dataflow is known; in place.

    Known pairs: mmcv's ``ConvModule`` that applies its norm right after its conv; a BatchNorm that
    follows a conv in an ``nn.Sequential``; ``conv1``/``norm1``, ``conv2``/``norm2``, ... of
    OpenMMLab's ResNet blocks and stems. Others are left as they are, which is exact too; the
    branches of RepVGG blocks are left to :func:`mmseg_repvgg.reparam.branches.fuse_branches`,
    unless the kind of block cannot be fused.

    Args:
        model: Any module, in any mode.

    Returns:
        The number of pairs fused.

    Raises:
        ValueError: As :func:`fold_batchnorm`.
    """
    count = 0
    blocks = [
        m
        for m in model.modules()
        if hasattr(m, 'get_equivalent_kernel_bias') and not getattr(m, 'cannot_fuse', '')
    ]
    branches = {part for block in blocks for part in block.modules()}
    for module in [m for m in model.modules() if m not in branches]:
        for conv_name, norm_name in _conv_norm_pairs(module):
            conv, norm = getattr(module, conv_name), getattr(module, norm_name)
            if type(conv) is not nn.Conv2d or not isinstance(norm, _BatchNorm):
                continue
            kernel, bias = fold_batchnorm(conv.weight, conv.bias, norm)
            setattr(module, conv_name, conv_like(conv, kernel, bias))
            setattr(module, norm_name, nn.Identity())
            count += 1
    return count


def _conv_norm_pairs(module: Any) -> list[tuple[str, str]]:
    """Names of the (conv, norm) children that ``module`` is known to run one after the other."""
    # ConvModule: told by its attributes, for mmcv need not be installed to use this file
    if hasattr(module, 'with_norm') and hasattr(module, 'order') and hasattr(module, 'norm_name'):
        adjacent = ('conv', 'norm') in pairwise(module.order)
        return [('conv', module.norm_name)] if module.with_norm and adjacent else []
    if isinstance(module, nn.Sequential):
        names = list(module._modules)
        return list(pairwise(names))
    # ResNet and its blocks keep the registered name of norm<i> in norm<i>_name
    numbered = (
        (f'conv{i}', getattr(module, f'norm{i}_name'))
        for i in range(1, 4)
        if hasattr(module, f'norm{i}_name')
    )
    return [(conv, norm) for conv, norm in numbered if {conv, norm} <= set(module._modules)]
