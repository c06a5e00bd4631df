"""Loading a state dict into a model, or saying exactly why it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmseg_repvgg.checkpoint.errors import CheckpointError
from mmseg_repvgg.checkpoint.naming import BACKBONE, SCHEMES, scheme_of, translate

SHOWN = 3
"""How many names of a long list an error shows."""


def is_fused(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds fused RepVGG blocks."""
    return any('.branch_reparam.' in f'.{name}' for name in state)


def check_fit(
    model: nn.Module, state: Mapping[str, Tensor], source: str, required: float = 1.0
) -> str:
    """See how much of a model a state dict fills.

    Args:
        model: The model; nothing is loaded.
        state: Tensors by name.
        source: What messages call the weights, a file name.
        required: The share of the model's tensors that must be found; 1 allows nothing left over
            either. Counters of batches seen (``num_batches_tracked``) may be missing.

    Returns:
        One line that says how many tensors fit and what was left.

    Raises:
        CheckpointError: If it is less than required; says what is missing, unexpected or of another
            shape, and the usual causes.
    """
    own = model.state_dict()
    missing = [n for n in own if n not in state and not n.endswith('num_batches_tracked')]
    left_over = [n for n in state if n not in own]
    shapes = [
        f'{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}'
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    fitting = len([n for n in own if n in state]) - len(shapes)
    found = '; '.join(
        f'{len(names)} {what} ({_shown(names)})'
        for what, names in {
            'missing': missing,
            'unexpected': left_over,
            'of another shape': shapes,
        }.items()
        if names
    )
    enough = not found if required >= 1 else fitting >= required * len(own)
    if enough:
        return f'{fitting} of {len(own)} tensors loaded from {source}{found and "; " + found}'
    if is_fused(state) != is_fused(own):
        raise CheckpointError(_other_form(source, is_fused(state)))
    raise CheckpointError(
        f'{source} does not fit the model: of {len(own)} tensors {fitting} fit; {found}. Check '
        'that config and checkpoint have the same architecture, number of classes and form '
        '(training or fused)'
    )


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load all of ``state`` into all of ``model``.

    Raises:
        CheckpointError: As :func:`check_fit`.
    """
    check_fit(model, state, source)
    model.load_state_dict(dict(state), strict=False)


def load_backbone(model: Any, state: Mapping[str, Tensor], source: str) -> str:
    """Load the weights of a RepVGG classifier, segmentor or backbone into a backbone.

    Names may be in any scheme of :mod:`mmseg_repvgg.checkpoint.naming`, with or without
    ``backbone.``. All of the backbone must be found, in its own form; weights of heads, and of
    stages that were not built, are left.

    Args:
        model: A ``DilatedRepVGG``.
        state: Tensors by name.
        source: What messages call the weights, a file name.

    Returns:
        One line that says how much was loaded and what was left.

    Raises:
        CheckpointError: If the names are not those of a RepVGG, the form is the other one, or
            something of the backbone is missing or has another shape.
    """
    scheme = scheme_of(state)
    if scheme is None:
        raise CheckpointError(
            f'{source} holds no RepVGG weights: of {len(state)} tensors, {_shown(list(state))}. '
            f'Known are the names of {", ".join(SCHEMES)}'
        )
    ours = translate(state, 'ours')
    if is_fused(ours) != model.deploy:
        raise CheckpointError(_other_form(source, is_fused(ours)))
    own = model.state_dict()
    found = {name: ours[BACKBONE + name] for name in own if BACKBONE + name in ours}
    load_strictly(model, found, source)
    left = [name for name in ours if name.removeprefix(BACKBONE) not in own]
    note = f'; left: {len(left)} ({_shown(left)})' if left else ''
    return f'{len(found)} of {len(own)} tensors loaded from {source} (names: {scheme}){note}'


def _other_form(source: str, fused: bool) -> str:
    if fused:
        return (
            f'{source} holds fused weights, but the model is in training form. Fused weights have '
            'no branches to train: load the training checkpoint it was made from, or build the '
            'model with deploy=True for inference'
        )
    return (
        f'{source} holds training-form weights, but the model is built fused (deploy=True). Fuse '
        'them first: python tools/deploy_fuse.py CONFIG CHECKPOINT OUT.pth'
    )


def _shown(names: list[str]) -> str:
    return ', '.join(names[:SHOWN]) + ', ...' * (len(names) > SHOWN)
