"""Loading a state dict into a model, fused or not, or saying exactly why it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from mmseg_repvgg.checkpoint.names import (
    BACKBONE,
    SCHEMES,
    explain,
    plain_names,
    rename,
    scheme_of,
    translate,
)
from mmseg_repvgg.checkpoint.reading import CheckpointError
from mmseg_repvgg.reparam.rewrites import apply_rewrites
from mmseg_repvgg.reparam.values import faults

SHOWN = 3
"""How many names of a long list an error shows."""
BLOCKS = ('stem.', 'stage_')
"""Prefixes of a backbone's tensors, in our naming scheme."""


def adapted(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights to the names and the form of a model, as far as possible.

    Names of the official code and of timm become ours if the model uses ours; training weights of
    fused parts of the model are fused.

    Args:
        model: The model.
        state: Tensors by name, from :func:`~mmseg_repvgg.checkpoint.reading.state_dict_of`.
    """
    own = {plain: name for name, plain in plain_names(model.state_dict()).items()}
    if scheme_of(own) == 'ours' and scheme_of(state) in ('official', 'timm'):
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
            tensors. ``num_batches_tracked`` may be missing.

    Returns:
        One line that says how many tensors fit and what does not.

    Raises:
        CheckpointError: If fewer fit; the message says what is missing, unexpected or of
            another shape, what was found and expected, and the fix.
    """
    own = model.state_dict()
    missing = [n for n in own if n not in state and not n.endswith('num_batches_tracked')]
    left_over = [n for n in state if n not in own]
    shapes = [
        f'{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}'
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    kinds = [
        f'{n} {state[n].dtype} for {own[n].dtype}'
        for n in own
        if n in state
        and own[n].is_floating_point() > state[n].is_floating_point()
        and state[n].shape == own[n].shape
    ]
    fitting = len([n for n in own if n in state]) - len(shapes) - len(kinds)
    found = '; '.join(
        f'{len(names)} {what} ({_preview(names)})'
        for what, names in {
            'missing': missing,
            'unexpected': left_over,
            'of another shape': shapes,
            'of another kind': kinds,
        }.items()
        if names
    )
    enough = not found if required >= 1 else fitting >= required * len(own)
    if enough:
        return f'{fitting} of {len(own)} tensors loaded from {source}{found and "; " + found}'
    raise CheckpointError(
        f'{source} does not fit the model: of {len(own)} tensors {fitting} fit; {found}. '
        f'{explain(own, state)}'
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

    Names may be in any scheme of :mod:`mmseg_repvgg.checkpoint.names`, with or without
    ``backbone.``. Every tensor of the backbone must be found, and its blocks may have no others; a
    fused backbone fuses training weights. Weights of heads, and of stages that were not built, are
    ignored. Variants of the block with the same parameters (``relu_in_branches`` and the full
    block, for example) cannot be told apart.

    Args:
        model: A ``DilatedRepVGG``.
        state: Tensors by name.
        source: The name of the weights in messages, such as the file.

    Returns:
        One line that says how much was loaded and what was ignored.

    Raises:
        CheckpointError: If the names are not those of a RepVGG, the weights are fused and the
            backbone is not, values are damaged, a tensor of the backbone is missing or has another
            shape, or the blocks are of another variant.
    """
    check_sound(state, source)
    own = model.state_dict()
    scheme = scheme_of(state)
    try:
        ours = translate(state, 'ours') if scheme else state
        ours = fused_state(model, rename(ours, lambda name: name.removeprefix(BACKBONE)))
    except ValueError as error:
        raise (
            error
            if isinstance(error, CheckpointError)
            else CheckpointError(f'{source} cannot be loaded: {error}')
        ) from error
    found = {name: ours[name] for name in own if name in ours}
    if scheme is None and not found:
        raise CheckpointError(
            f'{source} holds no RepVGG weights: none of its {len(state)} tensors '
            f'({_preview(list(state))}) is named as in {", ".join(SCHEMES)}'
        )
    left = [name for name in ours if name not in own]
    if any(name not in found for name in own if not name.endswith('num_batches_tracked')):
        check_fit(model, {n: t for n, t in ours.items() if n.startswith(BLOCKS)}, source)  # raises
    of_blocks = [name for name in left if name.startswith(tuple(_block_prefixes(own)))]
    if of_blocks:
        raise CheckpointError(
            f'{source} holds {len(of_blocks)} tensors that the blocks of the model do not have '
            f"({_preview(of_blocks)}): give the backbone the 'block' and 'branches' that it was "
            'trained with'
        )
    load_strictly(model, found, source)
    note = f'; not loaded: {len(left)} ({_preview(left)})' if left else ''
    return (
        f'{len(found)} of {len(own)} tensors loaded from {source} (names: {scheme or "ours"}){note}'
    )


def _block_prefixes(names: Iterable[str]) -> set[str]:
    """Return the prefixes of the blocks in a backbone with our names: ``stage_1.0.``, ``stem.``."""
    found = {name: SCHEMES['ours'].block(name) for name in names}
    return {name[: len(name) - len(split[1])] for name, split in found.items() if split}


def _preview(names: list[str]) -> str:
    return ', '.join(names[:SHOWN]) + ', ...' * (len(names) > SHOWN)


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
    if _names_without_counters(model) <= set(given):
        return
    training = model.training_form()
    if not _names_without_counters(training) <= set(given):
        return  # not its training weights either: the caller reports what does not fit
    own = training.state_dict()
    if any(given[name].shape != own[name].shape for name in own if name in given):
        return
    training.to(next(iter(given.values())).dtype)
    training.load_state_dict({name: given[name] for name in own if name in given}, strict=False)
    apply_rewrites(training, model.rewrites)
    for name in own:
        state.pop(prefix + name, None)
    state.update({prefix + name: value for name, value in training.state_dict().items()})


def _names_without_counters(model: nn.Module) -> set[str]:
    """Names of a model's tensors, without the counters that old checkpoints lack."""
    return {name for name in model.state_dict() if not name.endswith('num_batches_tracked')}
