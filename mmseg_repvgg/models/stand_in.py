"""What the graph keeps in the place of a tensor, and makes the tensor of when it is wanted."""

from __future__ import annotations

import weakref
from collections.abc import Callable
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
        with saved_tensors_hooks(_itself, _itself):
            return True
    except RuntimeError:
        return False


class MadeOf:
    """Stands for what a function makes of a tensor that is kept anyway.

    Args:
        source: That tensor.
        make: The function.
    """

    def __init__(self, source: Tensor, make: Callable[[Tensor], Tensor]) -> None:
        self.source, self.make, self.version = source.detach(), make, source._version

    def compute(self) -> Tensor:
        """What is made of it.

        Raises:
            RuntimeError: If it was changed since, as autograd says it of what it keeps.
        """
        if self.source._version != self.version:
            raise RuntimeError(
                'one of the variables needed for gradient computation has been modified by an '
                f'inplace operation: a tensor of shape {tuple(self.source.shape)} is at version '
                f'{self.source._version}; expected version {self.version} instead'
            )
        return self.make(self.source)


def kept_as(*pairs: tuple[Tensor, StandIn]) -> saved_tensors_hooks:
    """Within this context functions keep a stand-in where they would keep the tensor before it."""
    # the graph holds on to pack, which must not hold on to the tensors
    known = [(weakref.ref(tensor), stand_in) for tensor, stand_in in pairs]

    def pack(saved: Tensor) -> StandIn:
        for ref, stand_in in known:
            if ref() is saved:
                return stand_in
        return MadeOf(saved, _itself)  # what goes through such hooks autograd no longer checks

    return saved_tensors_hooks(pack, lambda stand_in: stand_in.compute())


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _is_checkpointed() -> bool:
    """Whether this runs within ``torch.utils.checkpoint``, which computes all of it again itself.

    It lets what a node keeps be read once, so that another reader must stand back.
    """
    top: Any = getattr(torch_c._autograd, '_top_saved_tensors_default_hooks', None)
    hooks = top and top(True)
    return bool(hooks) and hooks[0].__module__ == checkpoint.__module__
