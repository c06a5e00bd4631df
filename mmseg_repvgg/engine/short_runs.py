"""Trial runs: trainings that are shorter than the config's intervals and schedules."""

from __future__ import annotations

import warnings
from typing import Any

from mmengine.config import Config

from mmseg_repvgg.engine.config_types import type_name


def fit_short_run(cfg: Config) -> None:
    """Let a training that is shorter than the config's intervals log, save and start."""
    length = cfg.get('train_cfg') or {}
    hooks = cfg.get('default_hooks') or {}
    _fit_intervals(hooks, length.get('max_iters'))
    schedules = cfg.get('param_scheduler')
    if isinstance(schedules, (list, tuple)):
        cfg.param_scheduler = [one for one in schedules if not _never_begins(one, length)]


def _fit_intervals(hooks: dict[str, Any], total: int | None) -> None:
    logger, checkpoint = (hooks.get(name) or {} for name in ('logger', 'checkpoint'))
    if total and logger.get('interval', 10) > total:
        logger['interval'] = max(1, total // 20)
    if total and not checkpoint.get('by_epoch', True) and checkpoint.get('interval', -1) > total:
        checkpoint['interval'] = min(total, max(total // 10, 200))


def _never_begins(schedule: dict[str, Any], length: dict[str, Any]) -> bool:
    """Whether a schedule to the end of the training begins after it, which mmengine refuses."""
    unit = 'epoch' if schedule.get('by_epoch', True) else 'iter'
    total = length.get(f'max_{unit}s')
    never = total is not None and 'end' not in schedule and schedule.get('begin', 0) >= total
    if never:
        warnings.warn(
            f'the training ends at {unit} {total}, before {type_name(schedule)} of param_scheduler '
            f'begins (begin={schedule["begin"]}), which therefore has no effect',
            stacklevel=4,
        )
    return never
