"""Choose the stages, strides and dilations of a RepVGG that replaces a backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmseg_repvgg.models.arch import RepVGGArch
from mmseg_repvgg.swap_backbone.feature_maps import CannotSwapError, FeatureMap

VARIANTS = ('full', 'fast', 'none')
"""The dilations of the paper's section 4.3, full and fast, or none."""
FAST_LAYERS = 4
"""How many layers at the end of the paper's stage4 are dilated in the fast variant."""
STEM_STRIDE = 2
PLAIN_STRIDES = (4, 8, 16, 32)
"""Strides of the stages' feature maps without dilation, relative to the image."""


@dataclass(frozen=True)
class Stages:
    """Arguments of the new RepVGG backbone; strides and dilations have one entry per stage."""

    out_indices: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int | tuple[int, ...], ...]

    def maps(self, arch: RepVGGArch) -> list[FeatureMap]:
        """The feature maps of the backbone."""
        totals, stride = [], STEM_STRIDE
        for factor in self.strides:
            stride *= factor
            totals.append(stride)
        return [FeatureMap(arch.widths[1 + i], totals[i]) for i in self.out_indices]


def stages_for(
    backbone: Mapping[str, Any],
    maps: Sequence[FeatureMap],
    arch: RepVGGArch,
    variant: str | None = None,
) -> Stages:
    """The stages of a RepVGG that replaces a backbone.

    Args:
        backbone: The settings of the backbone to replace.
        maps: Its feature maps.
        arch: Architecture of the RepVGG.
        variant: One of :data:`VARIANTS`; by default the strides of the backbone's maps with its
            dilations, or with dilations that replace missing strides.

    Raises:
        CannotSwapError: If the maps are not those of successive stages.
        ValueError: On an unknown variant, or an arch that does not have four stages.
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(f'variant={variant!r} must be one of {", ".join(VARIANTS)}')
    if len(arch.num_blocks) != len(PLAIN_STRIDES):
        raise ValueError(f'num_blocks={arch.num_blocks} must have 4 entries, one per stage')
    out_indices = _out_indices(backbone, maps)
    count = out_indices[-1] + 1
    if variant is None:
        return _follow_backbone(backbone, dict(zip(out_indices, maps, strict=True)))
    strides = (2, 2, 2, 2) if variant == 'none' else (2, 2, 1, 1)
    dilations = dict(none=(1, 1, 1, 1), full=(1, 1, 2, 4), fast=_fast_dilations(arch))[variant]
    return Stages(out_indices, strides[:count], dilations[:count])


def _out_indices(backbone: Mapping[str, Any], maps: Sequence[FeatureMap]) -> tuple[int, ...]:
    """The stage of every map, from ``out_indices`` of the backbone or the first map's stride."""
    strides = [m.stride for m in maps]
    numbers = tuple(backbone.get('out_indices', ()) or ())
    by_stride = PLAIN_STRIDES.index(strides[0]) if strides[0] in PLAIN_STRIDES else None
    guesses = [numbers] if len(numbers) == len(maps) else []
    if by_stride is not None and len(maps) > 1:
        guesses.append(tuple(range(by_stride, by_stride + len(maps))))
    for guess in guesses:
        if set(guess) <= set(range(4)) and _are_possible(strides, guess):
            return guess
    raise CannotSwapError(
        f'the maps of {backbone.get("type")} have strides {strides}; RepVGG gives the maps of '
        'successive stages: strides 4, 8, 16, 32, less where stages are dilated'
    )


def _are_possible(strides: Sequence[int], stages: Sequence[int]) -> bool:
    """Whether these stages can have these strides: each halves its input's size, or keeps it."""
    plain = all(4 <= stride <= PLAIN_STRIDES[i] for stride, i in zip(strides, stages, strict=True))
    growth = zip(strides, strides[1:], stages, stages[1:], strict=False)
    return plain and all(
        next_ in [stride * 2**k for k in range(later - stage + 1)]
        for stride, next_, stage, later in growth
    )


def _fast_dilations(arch: RepVGGArch) -> tuple[int | tuple[int, ...], ...]:
    depth = arch.num_blocks[2]
    dilated = min(FAST_LAYERS, depth)
    return (1, 1, (1,) * (depth - dilated) + (2,) * dilated, 4)


def _follow_backbone(backbone: Mapping[str, Any], maps: Mapping[int, FeatureMap]) -> Stages:
    """Take the strides of the maps (by stage); a stage without a map follows the later maps."""
    count = max(maps) + 1
    totals = [
        min(PLAIN_STRIDES[i], *(m.stride for stage, m in maps.items() if stage >= i))
        for i in range(count)
    ]
    strides = [
        after // before for before, after in zip([STEM_STRIDE, *totals], totals, strict=False)
    ]
    own = backbone.get('dilations')
    if isinstance(own, (list, tuple)) and len(own) == len(PLAIN_STRIDES):
        dilations = tuple(own[:count])
    else:
        dilations = tuple(
            plain // total for plain, total in zip(PLAIN_STRIDES, totals, strict=False)
        )
    return Stages(tuple(maps), tuple(strides), dilations)
