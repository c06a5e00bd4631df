"""Identifies weights by names and shapes: naming scheme, form, architecture, classes.

======== ========================================== ===========================
scheme   a training-form weight                     used by
======== ========================================== ===========================
ours     backbone.stage_1.0.branch_3x3.conv.weight  this project and mmpretrain
official stage1.0.rbr_dense.conv.weight             github.com/DingXiaoH/RepVGG
timm     stages.0.0.conv_kxk.conv.weight            timm's ``repvgg_*`` models
======== ========================================== ===========================

Fused weights have ``branch_reparam``, ``rbr_reparam`` and ``reparam_conv`` instead of the branches.
Only the names differ: the tensors are the same in all three.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmseg_repvgg.checks import preview

BACKBONE = 'backbone.'
TENSORS = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
"""Tensors of a conv or a BatchNorm in the block."""
WRAPPED = re.compile(
    r'(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.'
)
"""What torch.compile, FSDP, activation checkpointing and DeepSpeed add to names."""
COUNTERS = ('n_averaged', 'total_ops', 'total_params')
"""Tensors that are not weights: torch's ``AveragedModel`` and thop add them to a model."""
CLASSIFIERS = ('.conv_seg.weight', 'head.fc.weight')
"""Endings of the names of classifier weights in the heads of mmseg and mmpretrain."""
Kernels = Mapping[str, tuple[int, int]]
KERNELS_OF_ARCHS: dict[str, Kernels] = {}
"""Output channels and input channels per group of every layer, by architecture and block;
filled by :mod:`mmseg_repvgg.models.arch`."""


@dataclass(frozen=True)
class NamingScheme:
    """How one code base names the weights of a RepVGG classifier."""

    stem: str
    stage: str  # format string for the numbers of stage and block
    first_stage: int  # the number of the first stage after the stem
    # 3x3 conv and norm, 1x1 conv and norm, identity's norm, fused conv, squeeze, excite
    parts: tuple[str, str, str, str, str, str, str, str]
    classifier: str
    prefix: str = ''  # of all names except the classifier's

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
    """Return the scheme that most names follow, or None if no name is of a RepVGG block.

    The names may start with ``backbone.`` in every scheme.
    """
    given = list(names)
    found = {scheme: sum(_split(scheme, name) is not None for name in given) for scheme in SCHEMES}
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
            become the same, or they are of a variant of the block
            (:mod:`mmseg_repvgg.models.variants`), which only ``ours`` can name.
    """
    if to not in SCHEMES:
        raise ValueError(f'unknown naming scheme {to!r}; choose from {", ".join(SCHEMES)}')
    scheme = scheme_of(state)
    if scheme is None:
        raise ValueError(
            f'the names are in none of the schemes {", ".join(SCHEMES)}: the first are '
            f'{preview(state)}'
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
        ValueError: If two would get the same name; the message gives all three names.
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
    """Remove what model wrappers add to the names of weights.

    :data:`WRAPPED` is removed anywhere in a name. ``module.`` (DistributedDataParallel,
    ``AveragedModel``) and ``model.`` (Lightning) are removed if all names start with them.

    Returns:
        The plain name by the given one, without :data:`COUNTERS`.
    """
    plain = {n: WRAPPED.sub('', n) for n in names if n.split('.')[-1] not in COUNTERS}
    for prefix in ('module.', 'model.') * 2:  # wrappers may be nested
        if plain and all(name.startswith(prefix) for name in plain.values()):
            plain = {name: new.removeprefix(prefix) for name, new in plain.items()}
    return plain


def _refuse_variants(names: Iterable[str], to: str) -> None:
    for name in names:
        split = _split('ours', name)
        in_block = SCHEMES['ours'].block(name.removeprefix(BACKBONE)) is not None
        if in_block and (split is None or split[2] not in TENSORS):
            raise ValueError(
                f'{name} belongs to a variant of the RepVGG block, and the scheme {to!r} has no '
                'name for it; fuse the weights first (mmseg-repvgg fuse), then translate them'
            )


def _split(scheme: str, name: str) -> tuple[tuple[int, int], int, str] | None:
    """Return block, index of the part, and the tensor's own name (``weight``, ...)."""
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
    """What the names and shapes of a state dict show."""

    form: str | None  # 'training' or 'deploy'; None without RepVGG blocks
    scheme: str | None  # one of SCHEMES
    arch: str | None  # a name in mmseg_repvgg.models.arch, or layers and widths
    classes: Mapping[str, int]  # number of classes by head
    in_channels: int | None = None  # channels of the images

    def __str__(self) -> str:
        form = {'training': 'training form', 'deploy': 'fused form'}.get(self.form or '')
        parts = [f'RepVGG {self.arch}, {form}' if form else 'no RepVGG']
        parts += (
            [f'images of {self.in_channels} channels'] if self.in_channels not in (None, 3) else []
        )
        parts += [f'{count} classes in {head}' for head, count in self.classes.items()]
        return ', '.join(parts)


def is_fused(state: Mapping[str, Any]) -> bool:
    """Whether a state dict in our names holds fused RepVGG blocks."""
    return any('.branch_reparam.' in f'.{name}' for name in state)


def identify(state: Mapping[str, Tensor]) -> Identity:
    """Identify what a state dict holds by its names and shapes, in any naming scheme."""
    scheme = scheme_of(state)
    if scheme is None:
        return Identity(None, None, None, _classes(state))
    ours = translate(state, 'ours')
    form = 'deploy' if is_fused(ours) else 'training'
    channels = next((kernel.shape[1] for kernel in stem_kernels(ours).values()), None)
    return Identity(form, scheme, _arch(ours), _classes(ours), channels)


def stem_kernels(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The kernels in the stem that see the image, by name, in our names."""
    return {
        name: tensor
        for name, tensor in state.items()
        if name.removeprefix(BACKBONE).startswith('stem.')
        and tensor.ndim == 4
        and '.se_layer.' not in name
    }


def explain(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Explain how weights differ from those that a model needs, and give the fix.

    Args:
        expected: The model's state dict.
        found: The weights.

    Returns:
        Sentences; the fix is for the first likely cause found.
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
    elif model.in_channels != (weights.in_channels or model.in_channels):
        fix = (
            'Give the channels of the images: --cfg-options '
            f'model.backbone.in_channels={weights.in_channels}, and as many values for mean and '
            'std; or start from weights for RGB images with model.pretrained, which adapts them'
        )
    elif model.form == 'training' and weights.form == 'deploy':
        fix = (
            'Fused weights have no branches to train: give the training checkpoint they were made '
            'from; to evaluate them, give the config written next to them (mmseg-repvgg test '
            'FUSED.py FUSED.pth), or build the backbone fused (--cfg-options '
            'model.backbone.deploy=True)'
        )
    elif model.form == 'deploy' and weights.form == 'training':
        fix = 'Fuse them: mmseg-repvgg fuse TRAINING_CONFIG CHECKPOINT OUT.pth'
    elif any(weights.classes.get(h, count) != count for h, count in model.classes.items()):
        fix = 'Give the number of classes: --cfg-options ' + ' '.join(
            f'model.{head}.num_classes={count}' for head, count in weights.classes.items()
        )
    else:
        fix = 'Give the config that the weights were made with'
    return f'Found: {weights}. Expected: {model}. {fix}'


def _arch(state: Mapping[str, Tensor]) -> str:
    """Return the architecture with these 3x3 kernels, or else its layers and widths."""
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
