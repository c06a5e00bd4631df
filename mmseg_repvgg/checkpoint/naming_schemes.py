"""How code bases name the weights of RepVGG.

=============== ========================================== ===========================
scheme          a training-form weight                     used by
=============== ========================================== ===========================
ours            backbone.stage_1.0.branch_3x3.conv.weight  this project and mmpretrain
official        stage1.0.rbr_dense.conv.weight             github.com/DingXiaoH/RepVGG
timm            stages.0.0.conv_kxk.conv.weight            timm's ``repvgg_*`` models
super_gradients stage1.0.branch_3x3.conv.weight            Deci's super-gradients
repvggplus      stage1.blocks.0.rbr_dense.conv.weight      RepVGGplus-L2pse of the official code
=============== ========================================== ===========================

Fused weights have ``branch_reparam``, ``rbr_reparam`` and ``reparam_conv`` instead of the branches.
Only the names differ: the tensors are the same in all of them, except for what
:mod:`mmseg_repvgg.checkpoint.super_gradients` removes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BACKBONE = 'backbone.'
TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
"""Tensors of a conv or a BatchNorm in the block."""
CONV_1X1, NORM = 2, 8
"""Indices of parts, which QARepVGG's block calls differently from RepVGG's."""


@dataclass(frozen=True)
class NamingScheme:
    """How one code base names the weights of a RepVGG classifier."""

    stem: str
    stage: str  # format string for the numbers of stage and block
    first_stage: int  # the number of the first stage after the stem
    # 3x3 conv and norm, 1x1 conv and norm, identity's norm, fused conv, squeeze, excite,
    # norm after the addition, squeeze and excite after the activation; None: it has none
    parts: tuple[str | None, ...]
    classifier: str
    prefix: str = ''  # of all names except the classifier's
    also: Mapping[str, int] = field(default_factory=dict)  # other names of parts, only to read

    def block(self, name: str) -> tuple[tuple[int, int], str] | None:
        """Split a name into its block, (stage, number), and the rest; the stem is (0, 0)."""
        pattern = re.escape(self.stage).replace(r'\{\}', r'(\d+)')
        found = re.match(rf'{pattern}\.', name)
        if found:
            return (int(found[1]) - self.first_stage + 1, int(found[2])), name[found.end() :]
        if name.startswith(f'{self.stem}.'):
            return (0, 0), name[len(self.stem) + 1 :]
        return None

    def block_name(self, block: tuple[int, int]) -> str:
        """The name of a block."""
        stage, number = block
        return self.stage.format(stage + self.first_stage - 1, number) if stage else self.stem


class PlusNamingScheme(NamingScheme):
    """Names of RepVGGplus-L2pse, whose third stage of 24 blocks is stored in two halves."""

    HALVED, HALF = 3, 12
    FIRST, SECOND = 'stage3_first', 'stage3_second'

    def block(self, name: str) -> tuple[tuple[int, int], str] | None:
        """As in :class:`NamingScheme`."""
        is_second = name.startswith(f'{self.SECOND}.')
        for half in (self.FIRST, self.SECOND):
            name = re.sub(rf'^{half}(?=\.)', f'stage{self.HALVED}', name)
        found = super().block(name)
        if found is None or not is_second:
            return found
        (stage, number), rest = found
        return (stage, number + self.HALF), rest

    def block_name(self, block: tuple[int, int]) -> str:
        """As in :class:`NamingScheme`."""
        stage, number = block
        if stage != self.HALVED:
            return super().block_name(block)
        half = self.FIRST if number < self.HALF else self.SECOND
        return f'{half}.blocks.{number % self.HALF}'


_OFFICIAL = (
    'rbr_dense.conv', 'rbr_dense.bn', 'rbr_1x1.conv', 'rbr_1x1.bn', 'rbr_identity', 'rbr_reparam',
)  # fmt: skip
SCHEMES: dict[str, NamingScheme] = {
    'ours': NamingScheme(
        stem='stem',
        stage='stage_{}.{}',
        first_stage=1,
        parts=(
            'branch_3x3.conv', 'branch_3x3.norm', 'branch_1x1.conv', 'branch_1x1.norm',
            'branch_norm', 'branch_reparam', 'se_layer.conv1.conv', 'se_layer.conv2.conv',
            'norm', 'post_se.conv1.conv', 'post_se.conv2.conv',
        ),
        classifier='head.fc',
        prefix=BACKBONE,
    ),
    'official': NamingScheme(
        stem='stage0',
        stage='stage{}.{}',
        first_stage=1,
        parts=(*_OFFICIAL, 'se.down', 'se.up', None, None, None),
        classifier='linear',
        also={'rbr_1x1': CONV_1X1, 'bn': NORM},  # QARepVGG: github.com/cxxgtxy/QARepVGG
    ),
    'timm': NamingScheme(
        stem='stem',
        stage='stages.{}.{}',
        first_stage=0,
        parts=(
            'conv_kxk.conv', 'conv_kxk.bn', 'conv_1x1.conv', 'conv_1x1.bn',
            'identity', 'reparam_conv', 'attn.fc1', 'attn.fc2', None, None, None,
        ),
        classifier='head.fc',
    ),
    # Not its squeeze-excitation: RepVGGBlock has it before the activation, QARepVGGBlock after it.
    'super_gradients': NamingScheme(
        stem='stem',
        stage='stage{}.{}',
        first_stage=1,
        parts=(
            'branch_3x3.conv', 'branch_3x3.bn', 'branch_1x1.conv', 'branch_1x1.bn',
            'no_conv_branch', 'rbr_reparam', None, None, None, None, None,
        ),
        classifier='linear',
        also={'branch_1x1': CONV_1X1, 'post_bn': NORM},
    ),
    'repvggplus': PlusNamingScheme(
        stem='stage0',
        stage='stage{}.blocks.{}',
        first_stage=1,
        parts=(*_OFFICIAL, None, None, None, 'post_se.down', 'post_se.up'),
        classifier='linear',
    ),
}  # fmt: skip


def scheme_of(names: Iterable[str]) -> str | None:
    """Return the scheme that most names follow, or None if no name is of a RepVGG block.

    The names may start with ``backbone.`` in every scheme.
    """
    given = list(names)
    found = {scheme: sum(_part(scheme, name) is not None for name in given) for scheme in SCHEMES}
    best = max(found, key=lambda scheme: found[scheme])
    return best if found[best] else None


def prefix_of(names: Iterable[str]) -> str:
    """The prefix after which the first name of a RepVGG block is in a scheme; else ''."""
    for name in names:
        parts = name.split('.')
        for start in range(1, len(parts)):
            if scheme_of(['.'.join(parts[start:])]):
                return '.'.join(parts[:start]) + '.'
    return ''


def split_name(scheme: str, name: str) -> tuple[tuple[int, int], int, str] | None:
    """Return block, index of the part, and the tensor's own name (``weight``, ...)."""
    found = _part(scheme, name)
    in_block = SCHEMES[scheme].block(name.removeprefix(BACKBONE))
    if found is not None or in_block is None:
        return found
    block, rest = in_block
    part, _, own = rest.rpartition('.')
    if part in SCHEMES[scheme].also and own in TENSORS:
        return block, SCHEMES[scheme].also[part], own
    return None


def _part(scheme: str, name: str) -> tuple[tuple[int, int], int, str] | None:
    """As :func:`split_name`, by the names that only RepVGG's blocks have."""
    found = SCHEMES[scheme].block(name.removeprefix(BACKBONE))
    if found is None:
        return None
    block, rest = found
    for number, part in enumerate(SCHEMES[scheme].parts):
        if part is not None and rest.startswith(f'{part}.'):
            return block, number, rest[len(part) + 1 :]
    return None
