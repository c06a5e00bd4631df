"""Modules as a rewrite finds them: their hooks, weights that are computed, and eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

COMPUTE_WEIGHTS = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Forward pre-hooks that compute a weight before each call."""


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than its class's forward.

    It does if it has hooks, or if its forward was replaced. Hooks that only compute its weight
    (``torch.nn.utils``: pruning, spectral and weight norm) do not count.
    """
    before = module._forward_pre_hooks.values()
    return (
        'forward' in vars(module)
        or any(not isinstance(hook, COMPUTE_WEIGHTS) for hook in before)
        or bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
    )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Within the context every module is in eval mode; the mode of each is restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def computed_weights(model: nn.Module) -> Iterator[None]:
    """Update computed weights; within the context they are computed as in eval mode.

    A pruned or normalised weight is outdated until the next call, for example after
    ``load_state_dict``. Spectral norm changes its state in training mode.
    """
    with eval_mode(model):
        for module in model.modules():
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, COMPUTE_WEIGHTS):
                    hook(module, None)
        yield
