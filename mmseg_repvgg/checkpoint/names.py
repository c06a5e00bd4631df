"""Translates names of weights, and identifies by names and shapes what weights are.

The naming schemes are those of :mod:`mmseg_repvgg.checkpoint.naming_schemes`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmseg_repvgg.checkpoint.naming_schemes import (
    BACKBONE,
    SCHEMES,
    TENSORS,
    scheme_of,
    split_name,
)
from mmseg_repvgg.checkpoint.super_gradients import without_extras
from mmseg_repvgg.checks import preview

WRAPPED = re.compile(
    r'(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.'
)
"""What torch.compile, FSDP, activation checkpointing and DeepSpeed add to names."""
COUNTERS = ('n_averaged', 'total_ops', 'total_params')
"""Tensors that are not weights: torch's ``AveragedModel`` and thop add them to a model."""
CLASSIFIERS = ('.conv_seg.weight', 'head.fc.weight')
"""Endings of the names of classifier weights in the heads of mmseg and mmpretrain."""
SQUEEZES = ('se_layer', 'post_se')
"""Names of squeeze-excitation in our blocks, before and after the activation."""
Kernels = Mapping[str, tuple[int, int]]
FEATURES_OF_ARCHS: dict[str, tuple[Kernels, str]] = {}
"""By architecture: output channels and input channels per group of every layer, by its block, and
the name of the squeeze-excitation, or ''; filled by :mod:`mmseg_repvgg.models.arch`."""


def translate(state: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Rename weights into another scheme.

    Args:
        state: Weights of a classifier or a backbone, in training or fused form, in any scheme.
        to: A name of :data:`SCHEMES`. In ours the backbone's names start with ``backbone.``, the
            classifier's with ``head.``, as in mmpretrain's checkpoints.

    Returns:
        The same tensors by their new names, except what super-gradients' blocks have more
        (:mod:`mmseg_repvgg.checkpoint.super_gradients`). Names that belong to no block and are not
        the classifier's stay as they are.

    Raises:
        ValueError: If ``to`` is unknown, the names are in none of the schemes, two of them would
            become the same, or ``to`` has no name for a weight: of a variant of the block
            (:mod:`mmseg_repvgg.models.variants`), which only ``ours`` can name, or of a
            squeeze-excitation that the other code does not have.
    """
    if to not in SCHEMES:
        raise ValueError(f'unknown naming scheme {to!r}; choose from {", ".join(SCHEMES)}')
    scheme = scheme_of(state)
    if scheme is None:
        raise ValueError(
            f'the names are in none of the schemes {", ".join(SCHEMES)}: the first are '
            f'{preview(state)}'
        )
    if scheme == 'super_gradients':
        state = without_extras(state)
    source, target = SCHEMES[scheme], SCHEMES[to]
    if to != 'ours':
        _refuse_what_has_no_name(state, scheme, to)

    def new_name(name: str) -> str:
        split = split_name(scheme, name)
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


def _refuse_what_has_no_name(state: Mapping[str, Tensor], scheme: str, to: str) -> None:
    """Raise ValueError unless a scheme, not ours, has a name for every weight of the blocks."""
    if to == 'repvggplus' and (arch := identify(state).arch) != 'L2pse':
        raise ValueError(
            f'these are weights of RepVGG {arch}, and {to!r} has names for RepVGGplus-L2pse only; '
            "choose 'official'"
        )
    parts = SCHEMES[to].parts
    for name in state:
        split = split_name(scheme, name)
        in_block = SCHEMES[scheme].block(name.removeprefix(BACKBONE)) is not None
        if in_block and (split is None or split[2] not in TENSORS or parts[split[1]] is None):
            raise ValueError(
                f'{name} belongs to a variant of the RepVGG block, and the scheme {to!r} has no '
                'name for it; fuse the weights first (mmseg-repvgg fuse), then translate them'
            )


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
        and not any(f'.{part}.' in name for part in SQUEEZES)
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
    squeezes = [part for part in SQUEEZES if any(f'.{part}.' in name for name in state)]
    features = kernels, ', '.join(squeezes)
    fitting = [name for name, given in FEATURES_OF_ARCHS.items() if given == features]
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
