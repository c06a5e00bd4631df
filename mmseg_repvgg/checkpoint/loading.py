"""Loading a state dict into a model, fused or not, or saying exactly why it does not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.checkpoint.input_channels import adapt_stem
from mmseg_repvgg.checkpoint.names import (
    WRAPPED,
    explain,
    plain_names,
    rename,
    stem_kernels,
    translate,
)
from mmseg_repvgg.checkpoint.naming_schemes import BACKBONE, SCHEMES, prefix_of, scheme_of
from mmseg_repvgg.checkpoint.reading import CheckpointError
from mmseg_repvgg.checks import preview
from mmseg_repvgg.reparam.rewrites import apply_rewrites
from mmseg_repvgg.reparam.values import faults


def adapted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to the names and the form of a model, as far as possible.

    Names of other code bases become ours if the model uses ours; training weights of fused parts of
    the model are fused.

    Args:
        model: The model.
        state: Tensors by name, from :func:`~mmseg_repvgg.checkpoint.reading.state_dict_of`.
    """
    own = {plain: name for name, plain in plain_names(model.state_dict()).items()}
    if scheme_of(own) == 'ours' and scheme_of(state) not in (None, 'ours'):
        state = translate(state, 'ours')
    return fused_state(model, rename(state, lambda name: own.get(name, name)))


def check_sound(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights with values that no trained network has.

    Raises:
        CheckpointError: If weights are NaN, infinite or complex, or a variance is negative; the
            message names them.
    """
    found = faults(state)
    if found:
        raise CheckpointError(
            f'{source} holds values that no trained network has: {found}. The file is damaged or '
            'training diverged: copy it again, or take an earlier checkpoint'
        )


def check_fit(
    model: nn.Module, state: Mapping[str, Tensor], source: str, required: float = 1.0
) -> str:
    """Check how much of a model a state dict fills.

    Args:
        model: The model; nothing is loaded.
        state: Tensors by name.
        source: The name of the weights in messages, such as the file.
        required: The share of the model's tensors that must be found; 1 also forbids unexpected
            tensors. ``num_batches_tracked`` may be missing. Kernels of the stem of another shape
            never fit: the layers after it would be trained on what random kernels see.

    Returns:
        One line that says how many tensors fit and what does not.

    Raises:
        CheckpointError: If fewer fit; the message says what is missing, unexpected or of
            another shape, what was found and expected, and the fix.
    """
    own = model.state_dict()
    stem = stem_kernels(own)
    shared = [name for name in own if name in state]
    same_shape = [name for name in shared if state[name].shape == own[name].shape]
    problems = {
        'missing': [n for n in _names_without_counters(model) if n not in state],
        'unexpected': [name for name in state if name not in own],
        'of another shape': [
            f'{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}'
            for name in shared
            if state[name].shape != own[name].shape
        ],
        'of another kind': [
            f'{name} {state[name].dtype} for {own[name].dtype}'
            for name in same_shape
            if own[name].is_floating_point() and not state[name].is_floating_point()
        ],
    }
    fitting = len(same_shape) - len(problems['of another kind'])
    listed = [
        f'{len(names)} {what} ({preview(names)})' for what, names in problems.items() if names
    ]
    other_images = any(name in state and state[name].shape != w.shape for name, w in stem.items())
    enough = not listed if required >= 1 else fitting >= required * len(own)
    if enough and not other_images:
        return '; '.join([f'{fitting} of {len(own)} tensors loaded from {source}', *listed])
    raise CheckpointError(
        f'{source} does not fit the model: of {len(own)} tensors {fitting} fit; '
        f'{"; ".join(listed)}. {explain(own, state)}'
    )


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict, :func:`adapted`, into a model; all tensors must fit.

    Raises:
        CheckpointError: As :func:`check_sound` and :func:`check_fit`.
    """
    check_sound(state, source)
    ready = adapted(model, state)
    check_fit(model, ready, source)
    model.load_state_dict(ready, strict=False)


def load_backbone(model: Any, state: Mapping[str, Tensor], source: str) -> str:
    """Load the weights of a RepVGG classifier, segmentor or backbone into a backbone.

    Names may be in any scheme of :mod:`mmseg_repvgg.checkpoint.naming_schemes`, with or without
    ``backbone.``. Every tensor of the backbone must be found, and its blocks may have no others; a
    fused backbone fuses training weights, and the stem of one that does not take RGB images adapts
    weights for them (:mod:`mmseg_repvgg.checkpoint.input_channels`). Weights of heads, and of
    stages that were not built, are ignored. Variants of the block with the same parameters
    (``relu_in_branches`` and the full block, for example) cannot be told apart.

    Args:
        model: A ``DilatedRepVGG``.
        state: Tensors by name.
        source: The name of the weights in messages, such as the file.

    Returns:
        One line that says how much was loaded, what was adapted and what was ignored.

    Raises:
        CheckpointError: If the names are not those of a RepVGG, the weights are fused and the
            backbone is not, values are damaged, a tensor of the backbone is missing or has another
            shape, or the blocks are of another variant.
    """
    check_sound(state, source)
    own, scheme, block_of = model.state_dict(), scheme_of(state), SCHEMES['ours'].block
    try:
        ours = translate(state, 'ours') if scheme else state
        ours = rename(ours, lambda name: name.removeprefix(BACKBONE))
        ours, adaptation = adapt_stem(model, ours)
        ours = fused_state(model, ours)
    except ValueError as error:
        raise CheckpointError(f'{source} cannot be loaded: {error}') from error
    found = {name: ours[name] for name in own if name in ours}
    if scheme is None and not found:
        prefix = prefix_of(state)
        hint = (
            f'. They are below {prefix!r}: give it as the prefix '
            f"(init_cfg=dict(type='Pretrained', checkpoint=..., prefix={prefix!r}))"
        )
        raise CheckpointError(
            f'{source} holds no RepVGG weights: none of its {len(state)} tensors '
            f'({preview(state)}) is named as in {", ".join(SCHEMES)}{hint if prefix else ""}'
        )
    is_complete = set(_names_without_counters(model)) <= set(found)
    of_blocks = {name: tensor for name, tensor in ours.items() if block_of(name)}
    check_fit(model, found if is_complete else of_blocks, source)
    blocks = {split[0] for name in own if (split := block_of(name))}
    left = [name for name in ours if name not in own]
    wrong = [name for name in left if (split := block_of(name)) and split[0] in blocks]
    if wrong:
        raise CheckpointError(
            f'{source} holds {len(wrong)} tensors that the blocks of the model do not have '
            f"({preview(wrong)}): give the backbone the 'block' and 'branches' that it was "
            'trained with'
        )
    model.load_state_dict(found, strict=False)
    notes = [f'{len(found)} of {len(own)} tensors loaded from {source} (names: {scheme or "ours"})']
    notes += [adaptation] if adaptation else []
    notes += [f'not loaded: {len(left)} ({preview(left)})'] if left else []
    return '; '.join(notes)


def below(prefix: str, state: Mapping[str, Tensor], source: str) -> Mapping[str, Tensor]:
    """Select the weights whose names start with a prefix, and remove it.

    Args:
        prefix: With or without the dot at its end, as in mmengine. All weights are selected if it
            is empty, ``backbone.``, which :func:`load_backbone` does not need, or what
            :func:`~mmseg_repvgg.checkpoint.names.plain_names` removed.
        state: Tensors by name, from :func:`~mmseg_repvgg.checkpoint.reading.state_dict_of`.
        source: The name of the weights in messages, such as the file.

    Raises:
        CheckpointError: If no name starts with it.
    """
    given = prefix.rstrip('.') + '.'
    plain = re.sub(r'^((module|model)\.)+', '', WRAPPED.sub('', given))
    for start in (given, plain):
        if start in ('', '.', BACKBONE):
            return state
        found = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
        if found:
            return found
    raise CheckpointError(
        f'{source} has no weights below prefix={prefix!r}: its names are {preview(state)}'
    )


def accept_training_weights(model: nn.Module) -> None:
    """Let ``load_state_dict`` of a fused model, or of one that contains it, take training weights.

    Args:
        model: A fused model. It has ``training_form()``, which builds the same model with branches
            and without weights, and ``rewrites``, the names of the rewrites that made it.
    """
    model.register_load_state_dict_pre_hook(_fuse_in_place)


def fused_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fuse the training weights in a state dict for a fused model.

    Args:
        model: The model, with parts prepared by :func:`accept_training_weights`.
        state: Tensors by name.

    Returns:
        The state dict to load; the same as ``state`` without training weights of a fused part.

    Raises:
        ValueError: As :func:`mmseg_repvgg.reparam.apply_rewrites`.
    """
    result = dict(state)
    for name, module in model.named_modules():
        if hasattr(module, 'training_form'):
            _fuse_in_place(module, result, f'{name}.' if name else '')
    return result


def _fuse_in_place(model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace the training weights under ``prefix`` by fused ones, if all are there."""
    if not getattr(model, 'deploy', True):
        return  # a backbone in training form
    given = {n.removeprefix(prefix): state[n] for n in state if n.startswith(prefix)}
    if set(_names_without_counters(model)) <= set(given):
        return
    training = model.training_form()
    if not set(_names_without_counters(training)) <= set(given):
        return  # not its training weights either: the caller reports what does not fit
    own = training.state_dict()
    if any(given[name].shape != own[name].shape for name in own if name in given):
        return
    exact = torch.promote_types(next(iter(given.values())).dtype, torch.float32)
    training.to(exact)  # float16 would round the fused kernels
    training.load_state_dict({name: given[name] for name in own if name in given}, strict=False)
    apply_rewrites(training, model.rewrites)
    for name in own:
        state.pop(prefix + name, None)
    state.update({prefix + name: value for name, value in training.state_dict().items()})


def _names_without_counters(model: nn.Module) -> list[str]:
    """Names of a model's tensors, in order, without the counters that old checkpoints lack."""
    return [name for name in model.state_dict() if not name.endswith('num_batches_tracked')]
