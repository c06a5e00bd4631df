"""What weights are: form, naming scheme, architecture, classes; and why two do not go together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mmseg_repvgg.checkpoint.naming import BACKBONE, scheme_of, translate

CLASSIFIERS = ('.conv_seg.weight', 'head.fc.weight')
"""How the names of the layers end whose outputs are the classes: mmseg's heads, mmpretrain's."""


@dataclass(frozen=True)
class Identity:
    """What a state dict shows of itself."""

    form: str | None  # 'training' or 'deploy'; None without RepVGG blocks
    scheme: str | None  # as in mmseg_repvgg.checkpoint.naming
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
    """Say how weights differ from those that a model needs, and what mends it.

    Args:
        expected: The model's state dict.
        found: The weights.

    Returns:
        Sentences; of the likely causes the first that is there.
    """
    model, weights = identify(expected), identify(found)
    if model.form and weights.form is None:
        mend = 'Give weights of a RepVGG'
    elif weights.form and model.form is None:
        mend = 'Give the config that the weights were trained with'
    elif model.arch != weights.arch:
        mend = (
            "Give weights of the model's architecture, or change the model: --cfg-options "
            f'model.backbone.arch={weights.arch}, and in_channels of the heads to match'
        )
    elif model.form == 'training' and weights.form == 'deploy':
        mend = (
            'Fused weights have no branches to train: give the training checkpoint they were made '
            'from; to evaluate them, give the config written beside them (python tools/test.py '
            'FUSED.py FUSED.pth), or build the backbone fused (--cfg-options '
            'model.backbone.deploy=True)'
        )
    elif model.form == 'deploy' and weights.form == 'training':
        mend = 'Fuse them: python tools/deploy_fuse.py TRAINING_CONFIG CHECKPOINT OUT.pth'
    elif _classes_differ(model, weights):
        mend = 'Give the number of classes: --cfg-options ' + ' '.join(
            f'model.{head}.num_classes={count}' for head, count in weights.classes.items()
        )
    else:
        mend = 'Give the config that the weights were made with'
    return f'Found: {weights}. Expected: {model}. {mend}'


def _arch(state: Mapping[str, Tensor]) -> str:
    """The architecture whose layers have the shapes of the 3x3 kernels."""
    # here, not above: the models import the loading of weights, which imports this module
    from mmseg_repvgg.models.arch import ARCHS

    kernels = {}
    for name, tensor in state.items():
        block, _, rest = name.removeprefix(BACKBONE).rpartition('.branch_')
        if rest in ('3x3.conv.weight', 'reparam.weight') and block != 'stem':
            kernels[block] = (tensor.shape[0], tensor.shape[1])
    fitting = [name for name, arch in ARCHS.items() if arch.kernels() == kernels]
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
