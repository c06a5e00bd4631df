"""Adapt the base's optimizer and learning rate schedule to another backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

WARM_UP: dict[str, Any] = dict(
    type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000
)
"""The warm-up of mmseg's K-Net recipes for ResNet-50."""
WARM_UP_SHARE = 20
"""A warm-up takes at most 1/20 of a training: 1000 of 20 000 iterations."""
WARM_UPS = ('ConstantLR', 'LinearLR', 'OneCycleLR')
"""Schedulers that start at a small rate, or can."""
BY_STEPS = ('ExponentialLR', 'MultiStepLR', 'StepLR')
"""Schedulers that count from their ``begin``. They run at the same time as the warm-up."""
BY_DEPTH = ('LayerDecayOptimizerConstructor', 'LearningRateDecayOptimizerConstructor')
"""Constructors that know only the layers of BEiT, MAE, ViT and ConvNeXt."""


def changed_schedule(
    cfg: Config, old: nn.Module, new: nn.Module
) -> tuple[dict[str, Any], list[str]]:
    """The training settings that change with the backbone, and notes for the user.

    Args:
        cfg: The base config.
        old: Its own backbone.
        new: The new backbone.
    """
    changes: dict[str, Any] = {}
    notes = []
    wrapper = cfg.get('optim_wrapper')
    if wrapper is not None:
        kept, dropped = _drop_old_layers(wrapper, old, new)
        if dropped:
            changes['optim_wrapper'] = dict(_delete_=True, **kept)
            notes.append(f"left out of the base's optim_wrapper: {', '.join(dropped)}")
    schedulers = cfg.get('param_scheduler') or []
    schedulers = [schedulers] if isinstance(schedulers, Mapping) else list(schedulers)
    if not any(s.get('type') in WARM_UPS for s in schedulers):
        total = _iterations(cfg, schedulers)
        end = WARM_UP['end'] if total is None else min(WARM_UP['end'], total // WARM_UP_SHARE)
        if not end:
            return changes, [*notes, f'no warm-up: the training has {total} iterations']
        changes['param_scheduler'] = [dict(WARM_UP, end=end), *_after_warm_up(schedulers, end)]
        shorter = '; use a shorter one for a short training' if total is None else ''
        notes.append(f'warm-up over {end} iterations{shorter}')
    return changes, notes


def _drop_old_layers(
    wrapper: Mapping[str, Any], old: nn.Module, new: nn.Module
) -> tuple[dict[str, Any], list[str]]:
    """The optimizer without settings for layers of the old backbone, and their names."""
    kept = dict(wrapper)
    if wrapper.get('constructor') in BY_DEPTH:
        del kept['constructor']
        kept.pop('paramwise_cfg', None)
        return kept, [f'{wrapper["constructor"]} and its paramwise_cfg']
    paramwise = dict(wrapper.get('paramwise_cfg') or {})

    def names(key: str, backbone: nn.Module) -> bool:
        return any(key in f'backbone.{name}' for name, _ in backbone.named_parameters())

    dropped = [
        key for key in paramwise.get('custom_keys', {}) if names(key, old) and not names(key, new)
    ]
    if dropped:
        keys = {k: v for k, v in paramwise['custom_keys'].items() if k not in dropped}
        kept['paramwise_cfg'] = dict(paramwise, custom_keys=keys)
    return kept, dropped


def _iterations(cfg: Config, schedulers: Sequence[Mapping[str, Any]]) -> int | None:
    """Iterations of the training or its first part; None if it counts epochs."""
    ends = [s['end'] for s in schedulers if not s.get('by_epoch', True) and 'end' in s]
    limit = (cfg.get('train_cfg') or {}).get('max_iters')
    return min([*ends, *([limit] if limit else [])], default=None)


def _after_warm_up(schedulers: Sequence[Mapping[str, Any]], end: int) -> list[dict[str, Any]]:
    """Start the schedulers of iteration 0 when the warm-up ends."""
    later = []
    for given in map(dict, schedulers):
        is_shifted = not given.get('by_epoch', True) and given.get('begin', 0) == 0
        if is_shifted and given.get('type') not in BY_STEPS:
            if given.get('T_max') is not None and given['T_max'] == given.get('end'):
                given['T_max'] -= end  # of a cosine over the whole training
            given['begin'] = end
        later.append(given)
    return later
