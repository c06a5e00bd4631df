"""Values that no trained network has: NaN, infinite, negative variances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Buffers of other names may be infinite: the masks of attention layers are.
FINITE = ('weight', 'bias', 'running_mean', 'running_var')
SHOWN = 3
"""How many tensors an error names."""


def faults(state: Mapping[str, Any]) -> str:
    """Say which tensors hold values that no trained network has.

    Args:
        state: Tensors by name.

    Returns:
        The first few names with what is wrong; empty if nothing is.
    """
    found = [
        f'{name} ({fault})'
        for name, tensor in state.items()
        if name.endswith(FINITE) and isinstance(tensor, Tensor) and (fault := _fault(name, tensor))
    ]
    more = f' and {len(found) - SHOWN} more' if len(found) > SHOWN else ''
    return ', '.join(found[:SHOWN]) + more


def check_values(model: nn.Module) -> None:
    """Raise if a model holds values that no trained network has.

    Raises:
        ValueError: If it does; the message names the tensors.
    """
    found = faults(model.state_dict())
    if found:
        raise ValueError(
            f'{type(model).__name__} cannot be fused: {found}. The checkpoint is damaged or '
            'training diverged: take an earlier checkpoint, and train with a lower learning rate '
            'or a longer warm-up'
        )


def _fault(name: str, tensor: Tensor) -> str:
    if tensor.is_meta or not (tensor.is_floating_point() or tensor.is_complex()):
        return ''
    if tensor.is_complex():
        return 'complex numbers'
    finite = tensor.isfinite()
    if not bool(finite.all()):
        wrong = tensor.numel() - int(finite.sum())
        return f'{wrong} of {tensor.numel()} values NaN or infinite'
    if name.endswith('running_var') and bool((tensor < 0).any()):
        return f'a variance of {tensor.min().item():.3g}, which cannot be negative'
    return ''
