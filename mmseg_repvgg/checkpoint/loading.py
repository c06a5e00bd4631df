"""Loading a state dict into a model, or saying exactly why it does not fit."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmseg_repvgg.checkpoint.reading import CheckpointError

SHOWN = 3
"""How many names of a long list an error shows."""


def is_fused(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict holds fused RepVGG blocks."""
    return any('.branch_reparam.' in f'.{name}' for name in state)


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load all of ``state`` into all of ``model``.

    Counters of batches seen (``num_batches_tracked``) may be missing.

    Args:
        model: The model.
        state: Tensors by name.
        source: What the error calls the weights, a file name.

    Raises:
        CheckpointError: If a name is missing or left over, or a shape differs.
    """
    own = model.state_dict()
    missing = [n for n in own if n not in state and not n.endswith('num_batches_tracked')]
    left_over = [n for n in state if n not in own]
    shapes = [
        f'{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}'
        for n in own
        if n in state and state[n].shape != own[n].shape
    ]
    if missing or left_over or shapes:
        found = [
            f'{len(names)} {what} ({", ".join(names[:SHOWN])}{", ..." * (len(names) > SHOWN)})'
            for what, names in dict(
                missing=missing, unexpected=left_over, of_another_shape=shapes
            ).items()
            if names
        ]
        raise CheckpointError(
            f'{source} does not fit the model: of {len(own)} tensors, {"; ".join(found)}. '
            'Check that config and checkpoint have the same architecture, number of classes and '
            'form (training or fused)'
        )
    model.load_state_dict(dict(state), strict=False)
