"""What the graph keeps in the place of a tensor, and makes the tensor of when it is wanted."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import _C as torch_c
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from mmseg_repvgg.models.eager import is_captured


class StandIn(Protocol):
    """Stands for a tensor."""

    def compute(self) -> Tensor:
        """The tensor, once more."""


def can_stand_in() -> bool:
    """Whether the graph takes stand-ins here.

    Not a captured graph: the compiler chooses itself what to keep. Not where hooks on saved tensors
    are refused, as ``torch.func`` does.
    """
    if is_captured() or _is_checkpointed():
        return False
    try:
        with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
            return True
    except RuntimeError:
        return False


def kept_as(tensor: Tensor, stand_in: StandIn) -> saved_tensors_hooks:
    """Within this context functions keep ``stand_in`` where they would keep ``tensor``."""
    wanted = weakref.ref(tensor)  # the graph holds on to pack, which must not hold on to the tensor

    def pack(saved: Tensor) -> Tensor | StandIn:
        return stand_in if saved is wanted() else saved

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept.compute()

    return saved_tensors_hooks(pack, unpack)


def _is_checkpointed() -> bool:
    """Whether this runs within ``torch.utils.checkpoint``, which computes all of it again itself.

    It lets what a node keeps be read once, so that another reader must stand back.
    """
    top: Any = getattr(torch_c._autograd, '_top_saved_tensors_default_hooks', None)
    hooks = top and top(True)
    return bool(hooks) and hooks[0].__module__ == checkpoint.__module__
