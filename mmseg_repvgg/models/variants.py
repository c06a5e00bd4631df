"""The kinds of blocks of a backbone: one table, a row per variant of Table 7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from mmseg_repvgg.models.block import RepVGGBlock
from mmseg_repvgg.models.layer import Layer
from mmseg_repvgg.models.residual import residual_stage
from mmseg_repvgg.models.variant_blocks import (
    AsymmetricConvBlock,
    DiracNetLayer,
    IdentityWithoutBN,
    PostAdditionBN,
    ReLUInBranches,
    TrivialReparam,
)

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
}
"""In the paper's order, the full block first. Table 6 removes branches from that block: top-1 is
72.39 with ``branches=('3x3',)``, 74.79 with 3x3 and identity, 73.15 with 3x3 and 1x1."""


def get_variant(block: str) -> Variant:
    """Look a name up.

    Raises:
        ValueError: If it is unknown.
    """
    if block not in VARIANTS:
        raise ValueError(f'unknown block {block!r}; choose from {", ".join(VARIANTS)}')
    return VARIANTS[block]
