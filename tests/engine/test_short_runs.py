"""Trainings that are shorter than the intervals and schedules of their config."""

import warnings

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import LinearLR, PolyLR

from mmseg_repvgg.engine import launch
from mmseg_repvgg.engine.short_runs import fit_short_run
from tests.own_data import draw_pairs, own_config

WARM_UP = dict(type='LinearLR', by_epoch=False, begin=0, end=1000)
POLY = dict(type='PolyLR', by_epoch=False, begin=1000)


@pytest.mark.parametrize(
    ('max_iters', 'logger', 'checkpoint'), [(7440, 50, 930), (500, 50, 200), (45, 2, 45)]
)
def test_short_trainings_log_and_save_in_between(max_iters, logger, checkpoint):
    hooks = dict(logger=dict(interval=50), checkpoint=dict(interval=930, by_epoch=False))
    cfg = Config(dict(train_cfg=dict(max_iters=max_iters), default_hooks=hooks))
    fit_short_run(cfg)
    hooks = cfg.default_hooks
    assert (hooks.logger.interval, hooks.checkpoint.interval) == (logger, checkpoint)


@pytest.mark.parametrize('poly', [POLY, dict(POLY, type=PolyLR)])
def test_a_schedule_that_begins_after_the_end_is_left_out(poly):
    cfg = Config(dict(train_cfg=dict(max_iters=1000), param_scheduler=[WARM_UP, poly]))
    with pytest.warns(UserWarning, match=r'ends at iter 1000, before PolyLR .*begin=1000'):
        fit_short_run(cfg)
    assert cfg.param_scheduler == [WARM_UP]


def test_a_schedule_of_epochs_as_well():
    cosine = dict(type='CosineAnnealingLR', begin=5)
    cfg = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=5), param_scheduler=[cosine]))
    with pytest.warns(UserWarning, match='ends at epoch 5, before CosineAnnealingLR'):
        fit_short_run(cfg)
    assert cfg.param_scheduler == []


@pytest.mark.parametrize(
    ('length', 'schedules'),
    [
        (dict(max_iters=1001), [WARM_UP, POLY]),
        (dict(max_iters=10), [WARM_UP, dict(POLY, end=2000)]),  # which mmengine takes
        (dict(max_epochs=5), [WARM_UP, POLY]),  # how many iterations these are is not known
        (dict(max_iters=10), dict(POLY)),  # mmengine's error: there would be no schedule
        (dict(max_iters=10), None),
    ],
)
def test_others_stay(length, schedules):
    cfg = Config(dict(train_cfg=length, param_scheduler=schedules))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        fit_short_run(cfg)
    assert cfg.param_scheduler == schedules


def test_mmengine_refuses_what_is_left_out():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    LinearLR(optimizer, begin=0, end=1000, by_epoch=False)
    with pytest.raises(ValueError, match='end should be larger than begin'):
        PolyLR(optimizer, begin=1000, end=1000, by_epoch=False)


@pytest.mark.slow
def test_the_template_trains_for_one_iteration(tmp_path):
    data = draw_pairs(tmp_path / 'data')
    config = own_config(tmp_path / 'config.py', data, max_iters=1)
    launch.train(launch.load_config(config), str(tmp_path / 'work'))
    assert (tmp_path / 'work/iter_1.pth').is_file()
