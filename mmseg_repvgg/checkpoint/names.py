"""What names and shapes of weights tell: naming scheme, form, architecture, classes.

======== ========================================== ===========================
scheme   a training-form weight                     whose
======== ========================================== ===========================
ours     backbone.stage_1.0.branch_3x3.conv.weight  this project and mmpretrain
official stage1.0.rbr_dense.conv.weight             github.com/DingXiaoH/RepVGG
timm     stages.0.0.conv_kxk.conv.weight            timm's ``repvgg_*`` models
======== ========================================== ===========================

Fused weights have ``branch_reparam``, ``rbr_reparam`` and ``reparam_conv`` instead of the branches.
Only names differ: tensors are the same in all three.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

BACKBONE = 'backbone.'
TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
"""What a conv or a BatchNorm of the block has."""
COUNTERS = ('n_averaged', 'total_ops', 'total_params')
"""Tensors that are no weights: of torch's ``AveragedModel``, and what thop leaves in a model."""
CLASSIFIERS = ('.conv_seg.weight', 'head.fc.weight')
"""How the names of the layers end whose outputs are the classes: mmseg's heads, mmpretrain's."""
Kernels = Mapping[str, tuple[int, int]]
KERNELS_OF_ARCHS: dict[str, Kernels] = {}
"""Output channels and input channels per group of every layer, by architecture and block;
:mod:`mmseg_repvgg.models.arch` enters its table."""


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
        ValueError: If ``to`` is unknown, the names are in none of the schemes, two of them would
            become one, or they are of a variant of the block
            (:mod:`mmseg_repvgg.models.variants`), which only ours can name.
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

    def new_name(name: str) -> str:
        split = _split(scheme, name)
        if split is not None:
            block, part, rest = split
            return f'{target.prefix}{target.block_name(block)}.{target.parts[part]}.{rest}'
        if name.startswith(f'{source.classifier}.'):
            return target.classifier + name[len(source.classifier) :]
        return name

    return rename(state, new_name)


def rename(state: Mapping[str, Any], new_name: Callable[[str], str]) -> dict[str, Any]:
    """Rename weights.

    Raises:
        ValueError: If two would have one name; gives all three.
    """
    old: dict[str, str] = {}
    for name in state:
        if old.setdefault(new_name(name), name) != name:
            raise ValueError(
                f'{old[new_name(name)]} and {name} would both become {new_name(name)}: the '
                'weights of two models are mixed. Keep one of them'
            )
    return {new: state[name] for new, name in old.items()}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Take off what wrappers of a model add to the names of its weights.

    That is ``_orig_mod.`` (``torch.compile``) wherever it stands, and, where all names begin so,
    ``module.`` (DistributedDataParallel, ``AveragedModel``) and ``model.`` (Lightning).

    Returns:
        The plain name by the given one, without counters of tools (:data:`COUNTERS`).
    """
    plain = {n: n.replace('_orig_mod.', '') for n in names if n.split('.')[-1] not in COUNTERS}
    for prefix in ('module.', 'model.') * 2:  # a wrapper may be in another
        if plain and all(name.startswith(prefix) for name in plain.values()):
            plain = {name: new.removeprefix(prefix) for name, new in plain.items()}
    return plain


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


@dataclass(frozen=True)
class Identity:
    """What a state dict shows of itself."""

    form: str | None  # 'training' or 'deploy'; None without RepVGG blocks
    scheme: str | None  # one of SCHEMES
    arch: str | None  # a name of the table in mmseg_repvgg.models.arch, or layers and widths
    classes: Mapping[str, int]  # number of classes by head

    def __str__(self) -> str:
        form = {'training': 'training form', 'deploy': 'fused form'}.get(self.form or '')
        parts = [f'RepVGG {self.arch}, {form}' if form else 'no RepVGG']
        parts += [f'{count} classes in {head}' for head, count in self.classes.items()]
        return ', '.join(parts)


def is_fused(state: Mapping[str, Any]) -> bool:
    """Whether a state dict in our names holds fused RepVGG blocks."""
    return any('.branch_reparam.' in f'.{name}' for name in state)


def identify(state: Mapping[str, Tensor]) -> Identity:
    """Tell what a state dict holds from its names and shapes, in any naming scheme."""
    scheme = scheme_of(state)
    if scheme is None:
        return Identity(None, None, None, _classes(state))
    ours = translate(state, 'ours')
    form = 'deploy' if is_fused(ours) else 'training'
    return Identity(form, scheme, _arch(ours), _classes(ours))


def explain(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Say how weights differ from those that a model needs, and the fix.

    Args:
        expected: The model's state dict.
        found: The weights.

    Returns:
        Sentences; of the likely causes the first that is there.
    """
    model, weights = identify(expected), identify(found)
    if model.form and weights.form is None:
        fix = 'Give weights of a RepVGG'
    elif weights.form and model.form is None:
        fix = 'Give the config that the weights were trained with'
    elif model.arch != weights.arch:
        fix = (
            "Give weights of the model's architecture, or change the model: --cfg-options "
            f'model.backbone.arch={weights.arch}, and in_channels of the heads to match'
        )
    elif model.form == 'training' and weights.form == 'deploy':
        fix = (
            'Fused weights have no branches to train: give the training checkpoint they were made '
            'from; to evaluate them, give the config written beside them (python tools/test.py '
            'FUSED.py FUSED.pth), or build the backbone fused (--cfg-options '
            'model.backbone.deploy=True)'
        )
    elif model.form == 'deploy' and weights.form == 'training':
        fix = 'Fuse them: python tools/deploy_fuse.py TRAINING_CONFIG CHECKPOINT OUT.pth'
    elif _classes_differ(model, weights):
        fix = 'Give the number of classes: --cfg-options ' + ' '.join(
            f'model.{head}.num_classes={count}' for head, count in weights.classes.items()
        )
    else:
        fix = 'Give the config that the weights were made with'
    return f'Found: {weights}. Expected: {model}. {fix}'


def _arch(state: Mapping[str, Tensor]) -> str:
    """The architecture whose layers have the shapes of the 3x3 kernels."""
    kernels = {}
    for name, tensor in state.items():
        block, _, rest = name.removeprefix(BACKBONE).rpartition('.branch_')
        if rest in ('3x3.conv.weight', 'reparam.weight') and block != 'stem':
            kernels[block] = (tensor.shape[0], tensor.shape[1])
    fitting = [name for name, given in KERNELS_OF_ARCHS.items() if given == kernels]
    if fitting:
        return fitting[0]
    stages = sorted({block.split('.')[0] for block in kernels})
    layers = [sum(block.startswith(f'{stage}.') for block in kernels) for stage in stages]
    widths = [kernels[f'{stage}.0'][0] for stage in stages if f'{stage}.0' in kernels]
    return f'with num_blocks={layers}, channels={widths}'


def _classes(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        name.rsplit('.', 2)[0]: len(tensor)
        for name, tensor in state.items()
        if name.endswith(CLASSIFIERS)
    }


def _classes_differ(model: Identity, weights: Identity) -> bool:
    shared = set(model.classes) & set(weights.classes)
    return any(model.classes[head] != weights.classes[head] for head in shared)
