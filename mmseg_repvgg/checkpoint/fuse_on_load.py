"""Training weights for a fused model: they are fused on the way in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmseg_repvgg.reparam.rewrites import apply_rewrites


def accept_training_weights(model: nn.Module) -> None:
    """Make ``load_state_dict`` of a fused model, or of a model around it, take training weights.

    Args:
        model: A fused model. It has ``training_form()``, which builds the same model with branches
            and without weights, and ``rewrites``, the names of the rewrites that led to it.
    """
    model.register_load_state_dict_pre_hook(_fuse_in_place)


def fused_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fuse the training weights in a state dict that a fused model is to load.

    Args:
        model: The model; its parts are those that :func:`accept_training_weights` prepared.
        state: Tensors by name.

    Returns:
        What the model loads; ``state`` as it is if it holds no training weights for a fused part.

    Raises:
        ValueError: As :func:`mmseg_repvgg.reparam.apply_rewrites`.
    """
    result = dict(state)
    for name, module in model.named_modules():
        if hasattr(module, 'training_form'):
            _fuse_in_place(module, result, f'{name}.' if name else '')
    return result


def _fuse_in_place(model: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Replace the training weights below ``prefix`` if they are all there."""
    if not getattr(model, 'deploy', True):
        return  # a backbone in training form
    given = {n.removeprefix(prefix): state[n] for n in state if n.startswith(prefix)}
    if _counted(model) <= set(given):
        return
    training = model.training_form()
    if not _counted(training) <= set(given):
        return  # not its training weights either: whoever loads says what does not fit
    own = training.state_dict()
    if any(given[name].shape != own[name].shape for name in own if name in given):
        return
    training.to(next(iter(given.values())).dtype)
    training.load_state_dict({name: given[name] for name in own if name in given}, strict=False)
    apply_rewrites(training, model.rewrites)
    for name in own:
        state.pop(prefix + name, None)
    state.update({prefix + name: value for name, value in training.state_dict().items()})


def _counted(model: nn.Module) -> set[str]:
    """Names of a model's tensors, without the counters that old checkpoints lack."""
    return {name for name in model.state_dict() if not name.endswith('num_batches_tracked')}
