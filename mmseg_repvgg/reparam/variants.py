"""The variants of the RepVGG block that the paper compares (section 4.2, Table 7) -> one 3x3 conv.

Stride and dilation need no arithmetic here either, see :mod:`mmseg_repvgg.reparam.branches`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmseg_repvgg.reparam.batchnorm import fold_batchnorm, to_float64
from mmseg_repvgg.reparam.branches import identity_kernel, merge_branches, pad_to_3x3


def merge_identity_without_bn(
    branch_3x3: tuple[Tensor, nn.Module], branch_1x1: tuple[Tensor, nn.Module] | None, groups: int
) -> tuple[Tensor, Tensor]:
    """Identity w/o BN: ``bn(x * W3) + bn(x * W1) + x``.

    Args:
        branch_3x3: Weight (C, C / groups, 3, 3) and its BatchNorm.
        branch_1x1: Weight (C, C / groups, 1, 1) and its BatchNorm, or None.
        groups: Groups of both convs.

    Returns:
        Kernel (C, C / groups, 3, 3) and bias (C,), float64.

    Raises:
        ValueError: If a norm cannot be fused.
    """
    kernel, bias = merge_branches(branch_3x3, branch_1x1, None, groups)
    return kernel + pad_to_3x3(identity_kernel(len(bias), groups)).to(kernel.device), bias


def merge_before_norm(
    kernels: Iterable[Tensor], has_identity: bool, norm: nn.Module, groups: int
) -> tuple[Tensor, Tensor]:
    """Post-addition BN: ``bn(x * W3 + x * W1 + x)``.

    Args:
        kernels: Weights (C_out, C_in / groups, kh, kw) of the convs that are added.
        has_identity: Whether the input is added as well.
        norm: The BatchNorm after the addition.
        groups: Groups of the convs.

    Returns:
        Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,), float64.

    Raises:
        ValueError: If the norm cannot be fused.
    """
    padded = [pad_to_3x3(to_float64(kernel)) for kernel in kernels]
    if has_identity:
        identity = identity_kernel(len(padded[0]), groups)
        padded.append(pad_to_3x3(identity).to(padded[0].device))
    return fold_batchnorm(torch.stack(padded).sum(0), None, norm)


def merge_normed(branches: Iterable[tuple[Tensor, nn.Module]]) -> tuple[Tensor, Tensor]:
    """Asymmetric conv block: ``bn(x * W3) + bn(x * W13) + bn(x * W31)``.

    The 1x3 kernel falls onto the middle row of the 3x3 kernel, the 3x1 kernel onto its middle
    column.

    Args:
        branches: Weight (C_out, C_in / groups, kh, kw) and BatchNorm of each conv.

    Returns:
        Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,), float64.

    Raises:
        ValueError: If a norm cannot be fused.
    """
    folded = [fold_batchnorm(weight, None, norm) for weight, norm in branches]
    kernels = torch.stack([pad_to_3x3(kernel) for kernel, _ in folded])
    return kernels.sum(0), torch.stack([bias for _, bias in folded]).sum(0)


def identity_like(weight: Tensor, groups: int) -> Tensor:
    """The 3x3 kernel of the identity, in the shape, dtype and device of ``weight``.

    If the numbers of input and output channels differ, it copies the first ones of each group, as
    ``torch.nn.init.dirac_`` and DiracNet's code do.
    """
    eye = torch.eye(
        len(weight) // groups, weight.shape[1], dtype=weight.dtype, device=weight.device
    )
    return pad_to_3x3(eye.repeat(groups, 1)[:, :, None, None])


def trivial_kernel(weight: Tensor, groups: int) -> Tensor:
    """Trivial Re-param: ``I + W``.

    Args:
        weight: W, (C_out, C_in / groups, 3, 3).
        groups: Groups of the conv.
    """
    return weight + identity_like(weight, groups)


def dirac_kernel(weight: Tensor, a: Tensor, b: Tensor, groups: int) -> Tensor:
    """DiracNet: ``diag(a) I + diag(b) W_norm`` (section 2.2).

    Args:
        weight: W, (C_out, C_in / groups, 3, 3). W_norm has the L2 norm 1 in each output channel.
        a: (C_out,).
        b: (C_out,).
        groups: Groups of the conv.
    """
    normed = F.normalize(weight.flatten(1)).view_as(weight)
    identity = identity_like(weight, groups)
    return a[:, None, None, None] * identity + b[:, None, None, None] * normed
