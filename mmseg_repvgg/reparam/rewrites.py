"""The exact rewrites by name, and the deployed copy of a model that they make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from mmseg_repvgg.reparam.batchnorm import fuse_batchnorms
from mmseg_repvgg.reparam.branches import fuse_branches
from mmseg_repvgg.reparam.dilation import undilate
from mmseg_repvgg.reparam.pyramid import linearize_pyramids


@dataclass(frozen=True)
class Rewrite:
    """A change of a model that leaves its outputs as they are."""

    apply: Callable[[nn.Module], int]  # in place; returns how many places it changed
    unit: str  # what is counted


REWRITES: dict[str, Rewrite] = {
    'branches': Rewrite(fuse_branches, 'RepVGG blocks'),
    'batchnorm': Rewrite(fuse_batchnorms, 'conv-BN pairs'),
    'dilation': Rewrite(undilate, 'dilated convs'),
    'pyramid': Rewrite(linearize_pyramids, 'pooling pyramids'),
}
"""In the order in which they are applied."""


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order in which they are applied.

    Raises:
        ValueError: On an unknown name, or none at all.
    """
    chosen = set(names)
    unknown = sorted(chosen - set(REWRITES))
    if unknown or not chosen:
        raise ValueError(
            f'rewrites={sorted(chosen)}: name at least one of {", ".join(REWRITES)} and no other'
        )
    return tuple(name for name in REWRITES if name in chosen)


def apply_rewrites(model: nn.Module, names: Iterable[str]) -> dict[str, int]:
    """Apply rewrites to ``model``, in place.

    Returns:
        How many places each rewrite changed, by name.

    Raises:
        ValueError: On an unknown name, or where a rewrite has nothing to act on or cannot act.
    """
    return {name: REWRITES[name].apply(model) for name in check_names(names)}


def deployed_copy(model: nn.Module, names: Iterable[str]) -> tuple[nn.Module, dict[str, int]]:
    """A rewritten copy of ``model`` in eval mode; ``model`` itself stays as it is.

    Methods that were replaced on the instance (as ``torch.compile`` through mmengine's runner does)
    would run the original model, so the copy has its class's methods again.

    Returns:
        The copy, and how many places each rewrite changed.

    Raises:
        ValueError: As :func:`apply_rewrites`.
    """
    deployed = copy.deepcopy(model)
    for module in deployed.modules():
        for name in [n for n in vars(module) if callable(getattr(type(module), n, None))]:
            delattr(module, name)
    counts = apply_rewrites(deployed, names)
    deployed.eval()  # not chained: the train() of some OpenMMLab backbones returns None
    return deployed, counts


def describe(counts: dict[str, int]) -> str:
    """For example ``28 RepVGG blocks, 7 conv-BN pairs``."""
    return ', '.join(f'{count} {REWRITES[name].unit}' for name, count in counts.items())
