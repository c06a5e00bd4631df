"""Kernels with the identity added to them: DiracNet and Trivial Re-param (section 4.2, Table 7)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmseg_repvgg.reparam.branches import identity_kernel


def trivial_kernel(weight: Tensor, groups: int) -> Tensor:
    """Trivial Re-param: ``I + W``.

    Args:
        weight: W, (C_out, C_in / groups, 3, 3).
        groups: Groups of the conv.
    """
    return weight + identity_kernel(weight, groups)


def dirac_kernel(weight: Tensor, a: Tensor, b: Tensor, groups: int) -> Tensor:
    """DiracNet: ``diag(a) I + diag(b) W_norm`` (section 2.2).

    Args:
        weight: W, (C_out, C_in / groups, 3, 3). W_norm has the L2 norm 1 in each output channel.
        a: (C_out,).
        b: (C_out,).
        groups: Groups of the conv.
    """
    normed = F.normalize(weight.flatten(1)).view_as(weight)
    identity = identity_kernel(weight, groups)
    return a[:, None, None, None] * identity + b[:, None, None, None] * normed
