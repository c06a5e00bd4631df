"""The variants of the block that the paper compares with (section 4.2, Table 7), one layer each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmseg_repvgg.models.block import RepVGGBlock
from mmseg_repvgg.models.layer import Layer, batch_norm, conv_bn
from mmseg_repvgg.reparam.batchnorm import fold_batchnorm, to_float64
from mmseg_repvgg.reparam.variants import (
    dirac_kernel,
    merge_before_norm,
    merge_identity_without_bn,
    merge_normed,
    trivial_kernel,
)


class IdentityWithoutBN(RepVGGBlock):
    """``bn(conv3x3(x)) + bn(conv1x1(x)) + x``.

    "Identity w/o BN removes the BN in identity branch."
    """

    REQUIRED: ClassVar[tuple[str, ...]] = ('3x3', 'identity')

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        super()._build_branches(layer, norm_cfg)
        if self.branch_norm is not None:
            self.branch_norm = nn.Identity()

    def _merge(self) -> tuple[Tensor, Tensor]:
        if self.branch_norm is None:
            return super()._merge()
        one = self.branch_1x1
        return merge_identity_without_bn(
            (self.branch_3x3.conv.weight, self.branch_3x3.norm),
            None if one is None else (one.conv.weight, one.norm),
            self.groups,
        )


class PostAdditionBN(RepVGGBlock):
    """``bn(conv3x3(x) + conv1x1(x) + x)``.

    "Post-addition BN removes the BN layers in the three branches and appends a BN layer after the
    addition."
    """

    norm: nn.Module

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        self.branch_3x3 = nn.Sequential(OrderedDict(conv=layer.conv()))
        has_1x1 = '1x1' in self.branches
        one = nn.Sequential(OrderedDict(conv=layer.conv((1, 1)))) if has_1x1 else None
        self.branch_1x1 = one
        has_identity = 'identity' in self.branches and layer.keeps_shape
        self.branch_norm = nn.Identity() if has_identity else None
        self.norm = batch_norm(norm_cfg, layer.out_channels)

    def _add_branches(self, x: Tensor) -> Tensor:
        return self.norm(super()._add_branches(x))

    def _merge(self) -> tuple[Tensor, Tensor]:
        branches = [b for b in (self.branch_3x3, self.branch_1x1) if b is not None]
        return merge_before_norm(
            [branch.conv.weight for branch in branches],
            self.branch_norm is not None,
            self.norm,
            self.groups,
        )


class ReLUInBranches(RepVGGBlock):
    """``relu(bn(conv3x3(x))) + relu(bn(conv1x1(x))) + relu(bn(x))``.

    "+ReLU in branches inserts ReLU into each branch (after BN and before addition). Since such a
    block cannot be converted into a single conv layer, it is of no practical use".
    """

    cannot_fuse: ClassVar[str] = (
        "block='relu_in_branches' cannot be fused: the ReLU between a branch and the addition is "
        'not linear, so no single conv equals the block (section 4.2). Serve its '
        "training form, with rewrites=['batchnorm'], or train another block"
    )

    def _add_branches(self, x: Tensor) -> Tensor:
        out = self.branch_3x3(x).relu()
        if self.branch_1x1 is not None:
            out = out + self.branch_1x1(x).relu()
        if self.branch_norm is not None:
            out = out + self.branch_norm(x).relu()
        return out


class AsymmetricConvBlock(RepVGGBlock):
    """ACB [10]: ``bn(conv3x3(x)) + bn(conv1x3(x)) + bn(conv3x1(x))``."""

    BRANCHES: ClassVar[tuple[str, ...]] = ('3x3', '1x3', '3x1')
    REQUIRED: ClassVar[tuple[str, ...]] = BRANCHES

    branch_1x3: Any
    branch_3x1: Any

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        self.branch_3x3 = conv_bn(layer.conv(), norm_cfg)
        self.branch_1x3 = conv_bn(layer.conv((1, 3)), norm_cfg)
        self.branch_3x1 = conv_bn(layer.conv((3, 1)), norm_cfg)

    def _add_branches(self, x: Tensor) -> Tensor:
        return self.branch_3x3(x) + self.branch_1x3(x) + self.branch_3x1(x)

    def _merge(self) -> tuple[Tensor, Tensor]:
        branches = (self.branch_3x3, self.branch_1x3, self.branch_3x1)
        return merge_normed((branch.conv.weight, branch.norm) for branch in branches)


class TrivialConv2d(nn.Conv2d):
    """A 3x3 conv with the kernel ``I + W``; ``weight`` is W."""

    def kernel(self, cast: Any = lambda tensor: tensor) -> Tensor:
        """The kernel of the conv; ``cast`` is applied to each parameter first."""
        return trivial_kernel(cast(self.weight), self.groups)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H_out, W_out)."""
        return self._conv_forward(x, self.kernel(), self.bias)


class DiracConv2d(TrivialConv2d):
    """A 3x3 conv with the kernel ``diag(a) I + diag(b) W_norm``; ``weight`` is W.

    a starts at 1 and b at 0.1, as in DiracNet's code, which trains both without weight decay
    (github.com/szagoruyko/diracnets).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.a = nn.Parameter(torch.full((self.out_channels,), 1.0))
        self.b = nn.Parameter(torch.full((self.out_channels,), 0.1))

    def kernel(self, cast: Any = lambda tensor: tensor) -> Tensor:
        """The kernel of the conv; ``cast`` is applied to each parameter first."""
        return dirac_kernel(cast(self.weight), cast(self.a), cast(self.b), self.groups)


class TrivialReparam(RepVGGBlock):
    """``bn(conv(x))`` with the kernel ``I + W``: the identity is in the kernel, not in a branch.

    "Trivial Re-param is a simpler re-parameterization of conv kernels by directly adding an
    identity kernel to the 3x3 kernel, which can be viewed a degraded version of DiracNet". The
    paper names no exception, so every layer has the I of :class:`DiracNetLayer`.
    """

    BRANCHES: ClassVar[tuple[str, ...]] = ('3x3',)
    CONV: ClassVar[type[TrivialConv2d]] = TrivialConv2d

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        self.branch_3x3 = conv_bn(layer.conv(kind=self.CONV), norm_cfg)

    def _add_branches(self, x: Tensor) -> Tensor:
        return self.branch_3x3(x)

    def _merge(self) -> tuple[Tensor, Tensor]:
        kernel = self.branch_3x3.conv.kernel(to_float64)
        return fold_batchnorm(kernel, None, self.branch_3x3.norm)


class DiracNetLayer(TrivialReparam):
    """``bn(conv(x))`` with the kernel ``diag(a) I + diag(b) W_norm`` (section 2.2, [39]).

    "We use its official PyTorch code to build the layers to replace the original 3x3 conv." If
    input and output have different numbers of channels, I copies the first ones; with a stride, it
    copies every stride-th pixel.
    """

    CONV: ClassVar[type[TrivialConv2d]] = DiracConv2d
