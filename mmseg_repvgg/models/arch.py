"""The RepVGG architectures: one table, a row per model.

A row gives the paper's stage2..stage5; stage1 is the single stem layer. Layers are numbered through
the whole body with the stem as layer 0 (the paper counts it as the 1st).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmseg_repvgg.checkpoint.names import FEATURES_OF_ARCHS
from mmseg_repvgg.checks import check_sequence, is_integer, is_positive

BASE_CHANNELS = 64
"""Width of stage2 at multiplier 1; it doubles from stage to stage (section 3.4)."""


@dataclass(frozen=True)
class RepVGGArch:
    """One architecture. The field names are those of mmpretrain's ``arch`` dictionaries.

    Raises:
        ValueError: If a field is invalid.
    """

    num_blocks: tuple[int, ...]  # layers of stage2, stage3, ...
    width_factor: tuple[float, ...]  # multiplier of 64, 128, 256, ... channels per stage
    group_layer_map: Mapping[int, int] | None = None  # layer number -> groups; others have 1
    se_cfg: Mapping[str, Any] | None = None  # squeeze-excitation: ratio, divisor, after_act
    stem_channels: int = BASE_CHANNELS  # upper limit of stage1's width
    source: str = 'custom'  # where the numbers come from

    def __post_init__(self) -> None:
        if len(self.num_blocks) != len(self.width_factor) or not self.num_blocks:
            raise ValueError(
                f'num_blocks={self.num_blocks} and width_factor={self.width_factor} must each '
                'have one value per stage'
            )
        whole = all(is_integer(n, 1) for n in (*self.num_blocks, self.stem_channels))
        if not whole or not all(map(is_positive, self.width_factor)):
            raise ValueError(
                f'num_blocks={self.num_blocks}, width_factor={self.width_factor} and '
                f'stem_channels={self.stem_channels!r} must be positive, and integers except '
                'width_factor'
            )
        if min(self.widths) < 1:
            raise ValueError(
                f'width_factor={self.width_factor} gives stages of {self.widths[1:]} channels; '
                'every stage needs at least one'
            )
        for name in ('group_layer_map', 'se_cfg'):
            if not isinstance(getattr(self, name), (Mapping, type(None))):
                raise ValueError(f'{name}={getattr(self, name)!r} must be a dictionary or None')
        for key, value in (self.se_cfg or {}).items():
            is_number = key in ('ratio', 'divisor') and is_integer(value, 1)
            if not is_number and not (key == 'after_act' and isinstance(value, bool)):
                raise ValueError(
                    f'se_cfg={dict(self.se_cfg or {})} takes ratio and divisor, integers of '
                    'at least 1, and after_act, True or False'
                )
        depth = sum(self.num_blocks)
        for layer, groups in (self.group_layer_map or {}).items():
            if not (is_integer(layer, 1) and layer <= depth and is_integer(groups, 1)):
                raise ValueError(
                    f'group_layer_map names layer {layer} with {groups!r} groups; the layers after '
                    f'the stem are 1..{depth}, and each needs at least 1 group'
                )

    @property
    def widths(self) -> tuple[int, ...]:
        """Output channels of the stem and of every stage."""
        stages = tuple(
            int(BASE_CHANNELS * 2**i * factor) for i, factor in enumerate(self.width_factor)
        )
        return (min(self.stem_channels, stages[0]), *stages)

    @property
    def squeeze_name(self) -> str:
        """Name of the squeeze-excitation in the blocks; '' if there is none."""
        if self.se_cfg is None:
            return ''
        return 'post_se' if self.se_cfg.get('after_act') else 'se_layer'

    def groups(self, layer: int) -> int:
        """Groups of a layer; the stem is layer 0."""
        return (self.group_layer_map or {}).get(layer, 1)

    def kernels(self) -> dict[str, tuple[int, int]]:
        """Output channels and input channels per group of every layer, by the name of its block.

        The stem is left out: its input channels depend on the images.
        """
        shapes, channels, layer = {}, self.widths[0], 1
        for stage, depth in enumerate(self.num_blocks, 1):
            for block in range(depth):
                per_group = channels // self.groups(layer)
                channels, layer = self.widths[stage], layer + 1
                shapes[f'stage_{stage}.{block}'] = channels, per_group
        return shapes


def interleaved(groups: int, num_blocks: tuple[int, ...]) -> dict[int, int]:
    """Groupwise layers of the g2 and g4 models: the 3rd, 5th, 7th, ... layer (section 3.4)."""
    return dict.fromkeys(range(2, sum(num_blocks) + 1, 2), groups)


def _row(
    num_blocks: tuple[int, ...],
    a: float,
    b: float,
    groups: int = 1,
    se_cfg: Mapping[str, Any] | None = None,
    source: str = 'paper, Table 3',
) -> RepVGGArch:
    """A row from the multipliers of Table 3: ``a`` up to stage4, ``b`` for stage5."""
    return RepVGGArch(
        num_blocks=num_blocks,
        width_factor=(a, a, a, b),
        group_layer_map=interleaved(groups, num_blocks) if groups > 1 else None,
        se_cfg=se_cfg,
        source=source,
    )


# Layers of stage2..stage5 (Table 2)
A = (2, 4, 14, 1)
B = (4, 6, 16, 1)
_GROUPWISE = 'paper, Table 3 and section 3.4'

ARCHS: dict[str, RepVGGArch] = {
    'A0': _row(A, a=0.75, b=2.5),
    'A1': _row(A, a=1, b=2.5),
    'A2': _row(A, a=1.5, b=2.75),
    'B0': _row(B, a=1, b=2.5),
    'B1': _row(B, a=2, b=4),
    'B1g2': _row(B, a=2, b=4, groups=2, source=_GROUPWISE),
    'B1g4': _row(B, a=2, b=4, groups=4, source=_GROUPWISE),
    'B2': _row(B, a=2.5, b=5),
    'B2g2': _row(B, a=2.5, b=5, groups=2, source=_GROUPWISE),
    'B2g4': _row(B, a=2.5, b=5, groups=4, source=_GROUPWISE),
    'B3': _row(B, a=3, b=5),
    'B3g2': _row(B, a=3, b=5, groups=2, source=_GROUPWISE),
    'B3g4': _row(B, a=3, b=5, groups=4, source=_GROUPWISE),
    # Not in the paper: the authors' later model with squeeze-excitation before every ReLU.
    'D2se': _row(
        (8, 14, 24, 1),
        a=2.5,
        b=5,
        se_cfg=dict(ratio=16, divisor=1),
        source='github.com/DingXiaoH/RepVGG, README (RepVGG-D2se)',
    ),
    # RepVGGplus-L2pse: the same with squeeze-excitation after every ReLU ("pse": post-SE). Its
    # auxiliary classifiers act in training only and are not part of a backbone.
    'L2pse': _row(
        (8, 14, 24, 1),
        a=2.5,
        b=5,
        se_cfg=dict(ratio=4, divisor=1, after_act=True),
        source='github.com/DingXiaoH/RepVGG, repvggplus.py (RepVGGplus-L2pse)',
    ),
}
FEATURES_OF_ARCHS.update(
    {name: (arch.kernels(), arch.squeeze_name) for name, arch in ARCHS.items()}
)


def get_arch(arch: str | Mapping[str, Any] | RepVGGArch) -> RepVGGArch:
    """Look up a name, or build an arch from a dictionary of :class:`RepVGGArch`'s fields.

    Raises:
        ValueError: If the name is unknown or the dictionary is invalid.
    """
    if isinstance(arch, RepVGGArch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown RepVGG arch {arch!r}; choose from {", ".join(ARCHS)}')
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise ValueError(f'arch must be a name or a dictionary, not {type(arch).__name__}')
    row = dict(arch)
    names = [field.name for field in fields(RepVGGArch)]
    unknown = sorted(set(row) - set(names))
    missing = [name for name in ('num_blocks', 'width_factor') if name not in row]
    if unknown or missing:
        raise ValueError(
            f'a custom arch has the keys {", ".join(names)} (the first two are required); '
            f'unknown: {unknown or "none"}, missing: {missing or "none"}'
        )
    for name in ('num_blocks', 'width_factor'):
        row[name] = check_sequence(name, row[name])
    return RepVGGArch(**row)
