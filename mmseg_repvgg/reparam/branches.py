"""The branches of a RepVGG block -> one 3x3 conv (paper eq. 1-4 and Figure 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_repvgg.reparam.batchnorm import fold_batchnorm


def identity_kernel(channels: int, groups: int) -> Tensor:
    """The identity as a 1x1 conv kernel.

    Returns:
        (channels, channels / groups, 1, 1) float64: row i has its 1 at i's place in i's group.
    """
    per_group = channels // groups
    return torch.eye(per_group, dtype=torch.float64).repeat(groups, 1)[:, :, None, None]


def pad_to_3x3(kernel: Tensor) -> Tensor:
    """Zero-pad a 1x1, 1x3 or 3x1 kernel: (C_out, C_in, kh, kw) -> (C_out, C_in, 3, 3)."""
    rows, columns = (1 - size // 2 for size in kernel.shape[2:])
    return F.pad(kernel, (columns, columns, rows, rows))


def merge_branches(
    branch_3x3: tuple[Tensor, nn.Module],
    branch_1x1: tuple[Tensor, nn.Module] | None,
    branch_norm: nn.Module | None,
    groups: int,
) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the one 3x3 conv that equals the sum of a block's branches.

    Stride and dilation need no arithmetic: the centre tap of a 3x3 kernel sees the same pixels as a
    1x1 conv of the same stride and padding 0, whatever the dilation.

    Args:
        branch_3x3: Weight (C_out, C_in / groups, 3, 3) and its BatchNorm.
        branch_1x1: Weight (C_out, C_in / groups, 1, 1) and its BatchNorm, or None.
        branch_norm: The BatchNorm of the identity branch, or None.
        groups: Groups of both convs.

    Returns:
        Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,), float64.

    Raises:
        ValueError: If a norm cannot be fused (see :func:`fold_batchnorm`).
    """
    kernel, bias = fold_batchnorm(branch_3x3[0], None, branch_3x3[1])
    ones = [] if branch_1x1 is None else [branch_1x1]
    if branch_norm is not None:
        ones.append((identity_kernel(len(bias), groups).to(kernel.device), branch_norm))
    for weight, norm in ones:
        kernel_1x1, bias_1x1 = fold_batchnorm(weight, None, norm)
        kernel, bias = kernel + pad_to_3x3(kernel_1x1), bias + bias_1x1
    return kernel, bias


def fusible_blocks(model: nn.Module) -> list[Any]:
    """The blocks of ``model`` that have branches, or had them before they were fused.

    A block is told by the two methods of the authors' code, ``get_equivalent_kernel_bias`` and
    ``switch_to_deploy``; one that has no fused form says why in ``cannot_fuse``.

    Raises:
        ValueError: If the model holds no such block, or one that cannot be fused.
    """
    reasons = {getattr(m, 'cannot_fuse', '') for m in model.modules()} - {''}
    if reasons:
        raise ValueError('; '.join(sorted(reasons)))
    blocks = [m for m in model.modules() if hasattr(m, 'get_equivalent_kernel_bias')]
    if not blocks:
        raise ValueError(
            f'{type(model).__name__} holds no RepVGG block, so there are no branches to fuse; '
            "use a RepVGG backbone, or leave 'branches' out of the rewrites"
        )
    return blocks


def fuse_branches(model: nn.Module) -> int:
    """Switch every block of ``model`` that has branches to its fused form; in place.

    Returns:
        The number of blocks fused: 0 if all had been fused before.

    Raises:
        ValueError: As :func:`fusible_blocks`; the model is then unchanged.
    """
    training_form = [block for block in fusible_blocks(model) if not block.deploy]
    for block in training_form:
        block.switch_to_deploy()
    return len(training_form)
