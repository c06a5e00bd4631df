"""The kinds of blocks: those that the paper compares (section 4.2, Table 7), and QARepVGG's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmseg_repvgg.models.block import RepVGGBlock
from mmseg_repvgg.models.layer import Layer, batch_norm, conv_bn
from mmseg_repvgg.models.residual import residual_stage
from mmseg_repvgg.reparam.batchnorm import fold_batchnorm, to_float64
from mmseg_repvgg.reparam.dirac_kernels import dirac_kernel, trivial_kernel


class IdentityWithoutBN(RepVGGBlock):
    """``bn(conv3x3(x)) + bn(conv1x1(x)) + x``.

    "Identity w/o BN removes the BN in identity branch."
    """

    REQUIRED: ClassVar[tuple[str, ...]] = ('3x3', 'identity')

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        super()._build_branches(layer, norm_cfg)
        if self.branch_norm is not None:
            self.branch_norm = nn.Identity()


class PostAdditionBN(RepVGGBlock):
    """``bn(conv3x3(x) + conv1x1(x) + x)``.

    "Post-addition BN removes the BN layers in the three branches and appends a BN layer after the
    addition."
    """

    NORM_3X3: ClassVar[bool] = False  # whether the 3x3 branch keeps its own
    norm: nn.Module

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        super()._build_branches(layer, norm_cfg)
        if not self.NORM_3X3:
            self.branch_3x3.norm = nn.Identity()
        if self.branch_1x1 is not None:
            self.branch_1x1.norm = nn.Identity()
        if self.branch_norm is not None:
            self.branch_norm = nn.Identity()
        self.norm = batch_norm(norm_cfg, layer.out_channels)

    def _add_branches(self, x: Tensor) -> Tensor:
        return self.norm(super()._add_branches(x))

    def _merge(self) -> tuple[Tensor, Tensor]:
        return fold_batchnorm(*super()._merge(), self.norm)


class QARepVGGBlock(PostAdditionBN):
    """``bn(bn(conv3x3(x)) + conv1x1(x) + x)``.

    The block of QARepVGG (Chu et al. 2024, "Make RepVGG Greater Again: A Quantization-aware
    Approach", Figure 1): the fused kernels have no outliers, which 8-bit quantization cannot
    represent. Squeeze-excitation follows the last BatchNorm, so that the block can be fused.
    """

    NORM_3X3: ClassVar[bool] = True


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

    def branch_kernels(self) -> dict[str, tuple[Tensor, nn.Module]]:
        """As in :class:`RepVGGBlock`."""
        convs = (self.branch_3x3, self.branch_1x3, self.branch_3x1)
        return {n: (b.conv.weight, b.norm) for n, b in zip(self.BRANCHES, convs, strict=True)}


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

    def branch_kernels(self) -> dict[str, tuple[Tensor, nn.Module]]:
        """As in :class:`RepVGGBlock`, the identity included."""
        return {'3x3': (self.branch_3x3.conv.kernel(to_float64), self.branch_3x3.norm)}


class DiracNetLayer(TrivialReparam):
    """``bn(conv(x))`` with the kernel ``diag(a) I + diag(b) W_norm`` (section 2.2, [39]).

    "We use its official PyTorch code to build the layers to replace the original 3x3 conv." If
    input and output have different numbers of channels, I copies the first ones; with a stride, it
    copies every stride-th pixel.
    """

    CONV: ClassVar[type[TrivialConv2d]] = DiracConv2d


Builder = Callable[..., list[nn.Module]]  # (layers of a stage, settings of the block) -> blocks


@dataclass(frozen=True)
class Variant:
    """A kind of block."""

    build: Builder
    row: str  # its name in Table 7, or another source
    accuracy: float | None = None  # top-1 of RepVGG-B0 on ImageNet, 120 epochs; quoted from Table 7


def _build_per_layer(kind: type[RepVGGBlock]) -> Builder:
    def build(layers: Sequence[Layer], **settings: Any) -> list[nn.Module]:
        return [kind(**asdict(layer), **settings) for layer in layers]

    return build


VARIANTS: dict[str, Variant] = {
    'repvgg': Variant(_build_per_layer(RepVGGBlock), 'Full-featured reparam', 75.14),
    'identity_without_bn': Variant(_build_per_layer(IdentityWithoutBN), 'Identity w/o BN', 74.18),
    'post_addition_bn': Variant(_build_per_layer(PostAdditionBN), 'Post-addition BN', 73.52),
    'relu_in_branches': Variant(_build_per_layer(ReLUInBranches), '+ReLU in branch', 75.69),
    'diracnet': Variant(_build_per_layer(DiracNetLayer), 'DiracNet', 73.97),
    'trivial_reparam': Variant(_build_per_layer(TrivialReparam), 'Trivial Re-param', 73.51),
    'acb': Variant(_build_per_layer(AsymmetricConvBlock), 'ACB', 73.58),
    'residual_reorg': Variant(residual_stage, 'Residual Reorg', 74.56),
    # Not in the paper: made for quantization to 8 bits.
    'qa_repvgg': Variant(_build_per_layer(QARepVGGBlock), 'QARepVGG (Chu et al. 2024)'),
}
"""In the paper's order, the full block first. Table 6 removes branches from that block: top-1 is
72.39 with ``branches=('3x3',)``, 74.79 with 3x3 and identity, 73.15 with 3x3 and 1x1."""
