"""The naming schemes of RepVGG weights, recognised from the names and translated into each other.

======== ========================================== ===========================
scheme   a training-form weight                     whose
======== ========================================== ===========================
ours     backbone.stage_1.0.branch_3x3.conv.weight  this project and mmpretrain
official stage1.0.rbr_dense.conv.weight             github.com/DingXiaoH/RepVGG
timm     stages.0.0.conv_kxk.conv.weight            timm's ``repvgg_*`` models
======== ========================================== ===========================

Fused weights have ``branch_reparam``, ``rbr_reparam`` and ``reparam_conv`` in the place of the
branches. Only names differ: tensors are the same in all three.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

BACKBONE = 'backbone.'
TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
"""What a conv or a BatchNorm of the block has."""


@dataclass(frozen=True)
class NamingScheme:
    """How one code base names the weights of a RepVGG classifier."""

    stem: str
    stage: str  # with places for the numbers of stage and block
    first_stage: int  # the number of the first stage after the stem
    # 3x3 conv and norm, 1x1 conv and norm, identity's norm, fused conv, squeeze, excite
    parts: tuple[str, str, str, str, str, str, str, str]
    classifier: str
    prefix: str = ''  # before all names but the classifier's

    def block(self, name: str) -> tuple[tuple[int, int], str] | None:
        """Split a name into its block, (0, 0) being the stem, and the rest of the name."""
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


SCHEMES: dict[str, NamingScheme] = {
    'ours': NamingScheme(
        stem='stem',
        stage='stage_{}.{}',
        first_stage=1,
        parts=(
            'branch_3x3.conv', 'branch_3x3.norm', 'branch_1x1.conv', 'branch_1x1.norm',
            'branch_norm', 'branch_reparam', 'se_layer.conv1.conv', 'se_layer.conv2.conv',
        ),
        classifier='head.fc',
        prefix=BACKBONE,
    ),
    'official': NamingScheme(
        stem='stage0',
        stage='stage{}.{}',
        first_stage=1,
        parts=(
            'rbr_dense.conv', 'rbr_dense.bn', 'rbr_1x1.conv', 'rbr_1x1.bn',
            'rbr_identity', 'rbr_reparam', 'se.down', 'se.up',
        ),
        classifier='linear',
    ),
    'timm': NamingScheme(
        stem='stem',
        stage='stages.{}.{}',
        first_stage=0,
        parts=(
            'conv_kxk.conv', 'conv_kxk.bn', 'conv_1x1.conv', 'conv_1x1.bn',
            'identity', 'reparam_conv', 'attn.fc1', 'attn.fc2',
        ),
        classifier='head.fc',
    ),
}  # fmt: skip


def scheme_of(names: Iterable[str]) -> str | None:
    """The scheme that names are in, or None if they name no RepVGG.

    The prefix ``backbone.`` may stand before them in every scheme.
    """
    given = list(names)
    found = {scheme: sum(_split(scheme, name) is not None for name in given) for scheme in SCHEMES}
    best = max(found, key=lambda scheme: found[scheme])
    return best if found[best] else None


def translate(state: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Rename weights into another scheme.

    Args:
        state: Weights of a classifier or a backbone, in training or fused form, in any scheme.
        to: ``ours``, ``official`` or ``timm``. In ours the backbone's names start with
            ``backbone.``, the classifier's with ``head.``, as in mmpretrain's checkpoints.

    Returns:
        The same tensors by their new names. Names that belong to no block and are not the
        classifier's stay as they are.

    Raises:
        ValueError: If ``to`` is unknown, the names are in none of the schemes, or they are of a
            variant of the block (:mod:`mmseg_repvgg.models.variants`), which only ours can name.
    """
    if to not in SCHEMES:
        raise ValueError(f'unknown naming scheme {to!r}; choose from {", ".join(SCHEMES)}')
    scheme = scheme_of(state)
    if scheme is None:
        raise ValueError(
            f'the names are in none of the schemes {", ".join(SCHEMES)}: they begin with '
            f'{", ".join(list(state)[:3])}'
        )
    source, target = SCHEMES[scheme], SCHEMES[to]
    if source is SCHEMES['ours'] and target is not source:
        _refuse_variants(state, to)
    renamed = {}
    for name, tensor in state.items():
        split = _split(scheme, name)
        if split is not None:
            block, part, rest = split
            new = f'{target.prefix}{target.block_name(block)}.{target.parts[part]}.{rest}'
        elif name.startswith(f'{source.classifier}.'):
            new = target.classifier + name[len(source.classifier) :]
        else:
            new = name
        renamed[new] = tensor
    return renamed


def _refuse_variants(names: Iterable[str], to: str) -> None:
    for name in names:
        split = _split('ours', name)
        in_block = SCHEMES['ours'].block(name.removeprefix(BACKBONE)) is not None
        if in_block and (split is None or split[2] not in TENSORS):
            raise ValueError(
                f'{name} is of a variant of the RepVGG block, for which the scheme {to!r} has no '
                'name; fuse the weights first (tools/deploy_fuse.py), then translate them'
            )


def _split(scheme: str, name: str) -> tuple[tuple[int, int], int, str] | None:
    """Block, number of the part, and the tensor's own name (``weight``, ``running_mean``, ...)."""
    found = SCHEMES[scheme].block(name.removeprefix(BACKBONE))
    if found is None:
        return None
    block, rest = found
    for number, part in enumerate(SCHEMES[scheme].parts):
        if rest.startswith(f'{part}.'):
            return block, number, rest[len(part) + 1 :]
    return None
