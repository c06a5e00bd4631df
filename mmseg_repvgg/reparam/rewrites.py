"""The exact rewrites by name, and the deployed copy of a model that they make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmseg_repvgg.reparam.batchnorm import fuse_batchnorms
from mmseg_repvgg.reparam.branches import fuse_branches
from mmseg_repvgg.reparam.dilation import undilate
from mmseg_repvgg.reparam.equalize import equalize
from mmseg_repvgg.reparam.module_hooks import computed_weights
from mmseg_repvgg.reparam.pyramid import linearize_pyramids
from mmseg_repvgg.reparam.values import check_values


@dataclass(frozen=True)
class Rewrite:
    """A change of a model that keeps its outputs, and where it is applied by default.

    It is applied by default on the devices in ``by_default``. With ``if_compared``, only where the
    model is then compared with the original: in the tools and in the deploy hook.
    """

    apply: Callable[[nn.Module], int]  # in place; returns how many places it changed
    unit: str  # what is counted
    by_default: tuple[str, ...] = ()  # types of devices, or 'all'
    if_compared: bool = False


REWRITES: dict[str, Rewrite] = {
    'branches': Rewrite(fuse_branches, 'blocks', ('all',)),
    'batchnorm': Rewrite(fuse_batchnorms, 'conv-BN pairs', ('all',)),
    'dilation': Rewrite(undilate, 'dilated convs', ('cpu',)),
    'pyramid': Rewrite(linearize_pyramids, 'pooling pyramids', ('cpu',)),
    'equalize': Rewrite(equalize, 'equalized channels'),
}
"""In the order in which they are applied; the accel package adds its own at the end."""


def default_names(model: nn.Module, compared: bool = False) -> tuple[str, ...]:
    """The rewrites that are applied by default on the device of ``model``.

    On the CPU these are the ones that were measured not to be slower: all but ``equalize``. On a
    GPU, where nothing was measured, these are the paper's own two.

    Args:
        model: The device is that of its first parameter.
        compared: Whether the caller compares the rewritten model with the original.
    """
    device = next((p.device.type for p in model.parameters()), 'cpu')
    return tuple(
        name
        for name, rewrite in REWRITES.items()
        if {'all', device} & set(rewrite.by_default) and (compared or not rewrite.if_compared)
    )


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order in which they are applied.

    Raises:
        ValueError: On an unknown name, or none at all.
    """
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(
            f'rewrites={names!r} must be a list of names: at least one of {", ".join(REWRITES)}'
        )
    chosen = set(names)
    if not chosen or not chosen <= set(REWRITES):
        raise ValueError(
            f'rewrites={sorted(map(str, chosen))}: name at least one of {", ".join(REWRITES)} and '
            'no other (those of the accel package are added when it is imported)'
        )
    return tuple(name for name in REWRITES if name in chosen)


def apply_rewrites(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, int]:
    """Apply rewrites to ``model``, in place; by default :func:`default_names`.

    A rewrite that fails changes nothing; those before it stay applied.

    Returns:
        How many places each rewrite changed, by name.

    Raises:
        ValueError: On an unknown name, if a rewrite cannot be applied, or if a weight is NaN or
            infinite or a variance negative.
        EquivalenceError: As :func:`mmseg_repvgg.reparam.branches.fuse_branches`.
    """
    chosen = default_names(model) if names is None else check_names(names)
    check_values(model)
    return {name: REWRITES[name].apply(model) for name in chosen}


def deployed_copy(
    model: nn.Module, names: Iterable[str] | None = None
) -> tuple[nn.Module, dict[str, int]]:
    """A rewritten copy of ``model`` in eval mode; ``model`` itself is unchanged.

    By default the rewrites are those of :func:`default_names`.

    Methods that were replaced on the instance (mmengine's runner does so for ``torch.compile``)
    would run the original model, so the copy gets the methods of its class. Modules wrapped by
    ``torch.compile`` are unwrapped.

    Returns:
        The copy, and how many places each rewrite changed.

    Raises:
        ValueError: As :func:`apply_rewrites`.
    """
    with torch.no_grad(), computed_weights(model):  # a weight with a graph cannot be copied
        deployed = _unwrap_compiled(copy.deepcopy(model))
    for module in deployed.modules():
        for name in [n for n in vars(module) if callable(getattr(type(module), n, None))]:
            delattr(module, name)
    counts = apply_rewrites(deployed, names)
    deployed.eval()  # not chained: the train() of some OpenMMLab backbones returns None
    return deployed, counts


def _unwrap_compiled(model: Any) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module._modules.items():
            module._modules[name] = getattr(child, '_orig_mod', child)
    return getattr(model, '_orig_mod', model)


def describe(counts: dict[str, int]) -> str:
    """For example ``28 blocks, 7 conv-BN pairs``; rewrites without effect are left out."""
    acted = {name: count for name, count in counts.items() if count} or counts
    return ', '.join(f'{count} {REWRITES[name].unit}' for name, count in acted.items())
