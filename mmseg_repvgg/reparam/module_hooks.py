"""Hooks of modules: those that compute a weight, and all others, which a rewrite must not lose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

COMPUTE_WEIGHTS = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Forward pre-hooks that set a weight anew before each call."""


def has_hooks(module: nn.Module) -> bool:
    """Whether calling ``module`` does more than its class's forward.

    It has hooks, or its forward was replaced on the instance. Hooks that only compute its weight
    (``torch.nn.utils``: pruning, spectral and weight norm) do not count.
    """
    before = module._forward_pre_hooks.values()
    return (
        'forward' in vars(module)
        or any(not isinstance(hook, COMPUTE_WEIGHTS) for hook in before)
        or bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
    )


@contextmanager
def computed_weights(model: nn.Module) -> Iterator[None]:
    """Bring computed weights up to date, and have them computed as in eval mode.

    A pruned or normalised weight is an attribute that is old until the next call, after
    ``load_state_dict`` for example; spectral norm changes its state when it is used in training
    mode. The mode of every module is put back.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        for module, _ in modes:
            for hook in module._forward_pre_hooks.values():
                if isinstance(hook, COMPUTE_WEIGHTS):
                    hook(module, None)
        yield
    finally:
        for module, training in modes:
            module.training = training
