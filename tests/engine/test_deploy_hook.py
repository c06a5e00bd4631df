"""RepVGGDeployHook in a real Runner: what it evaluates, and that training never notices."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook
from mmseg_repvgg.models import RepVGGBlock
from mmseg_repvgg.reparam.equivalence import EquivalenceError
from tests.common import runner_cfg


@HOOKS.register_module(force=True)
class Spy(Hook):
    """Notes, around every validation, what the runner holds."""

    priority = 'LOW'  # after the deploy hook

    def __init__(self):
        self.seen = []

    def _note(self, runner, when):
        model = runner.model
        norms = sum(isinstance(m, _BatchNorm) for m in model.modules())
        self.seen.append((when, id(model), norms))

    def before_run(self, runner):
        self._note(runner, 'start')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 0:
            self._note(runner, 'val')

    def after_val_epoch(self, runner, metrics=None):
        self._note(runner, 'after')


def run(scenes, work_dir, hooks, **changes):
    """Train; return the runner, the scalars that were logged, and the last checkpoint."""
    runner = Runner.from_cfg(runner_cfg(scenes, work_dir, custom_hooks=hooks, **changes))
    runner.train()
    log = next(Path(work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    scalars = [json.loads(line) for line in log]
    for line in scalars:
        for clock in ('time', 'data_time', 'memory'):
            line.pop(clock, None)
    checkpoint = torch.load(Path(work_dir) / 'iter_4.pth', weights_only=False)
    return runner, scalars, checkpoint


def assert_same(a, b, path='checkpoint'):
    """Equality of nested checkpoints to the last bit; clocks and file names apart."""
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            if key not in ('message_hub', 'time', 'cfg', 'experiment_name'):
                assert_same(a[key], b[key], f'{path}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f'{path}[{i}]')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    else:
        assert a == b, path


EMA = dict(type='EMAHook', momentum=0.3)


@pytest.mark.parametrize('others', [[], [EMA]], ids=['alone', 'with EMA'])
def test_training_is_bit_for_bit_that_without_the_hook(scenes, tmp_path, others):
    hook = dict(type='RepVGGDeployHook')
    _, losses, checkpoint = run(scenes, tmp_path / 'without', copy.deepcopy(others))
    _, losses_2, checkpoint_2 = run(scenes, tmp_path / 'with', [*copy.deepcopy(others), hook])
    train = [line for line in losses if 'loss' in line]
    assert len(train) == 4
    assert train == [line for line in losses_2 if 'loss' in line]
    assert_same(checkpoint, checkpoint_2)
    # the same metrics too: fused and unfused agree in every pixel or nearly so
    scores = [[s['mIoU'] for s in log if 'mIoU' in s] for log in (losses, losses_2)]
    assert len(scores[0]) == 2
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    # negative control: another seed is another training
    changes = dict(randomness=dict(seed=1))
    _, losses_3, _ = run(scenes, tmp_path / 'other', [hook], **changes)
    assert train != [line for line in losses_3 if 'loss' in line]


@pytest.mark.parametrize(
    'order', [[EMA, dict(type='RepVGGDeployHook')], [dict(type='RepVGGDeployHook'), EMA]]
)
def test_the_fused_form_is_live_in_validation_only_and_is_that_of_the_ema(
    scenes, tmp_path, order, caplog
):
    runner, _, checkpoint = run(scenes, tmp_path, [*copy.deepcopy(order), dict(type='Spy')])
    spy = next(h for h in runner.hooks if isinstance(h, Spy))
    start = spy.seen[0]
    assert start[2] > 20
    assert [when for when, _, _ in spy.seen] == ['start', 'val', 'after', 'val', 'after']
    for when, identity, norms in spy.seen[1:]:
        assert norms == (0 if when == 'val' else start[2])
        assert (identity == start[1]) == (when == 'after')
    assert checkpoint['state_dict'].keys() == runner.model.state_dict().keys()


def test_a_model_wrapped_in_ddp_trains_and_comes_back_wrapped(scenes, tmp_path):
    from mmengine.model import MMDistributedDataParallel

    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        states, losses = [], []
        for name, hooks in (('without', []), ('with', [dict(type='RepVGGDeployHook')])):
            cfg = runner_cfg(scenes, tmp_path / name, custom_hooks=[*hooks, dict(type='Spy')])
            runner = Runner.from_cfg(cfg)
            runner.model = MMDistributedDataParallel(runner.model)
            runner.train()
            assert isinstance(runner.model, MMDistributedDataParallel)
            spy = next(h for h in runner.hooks if isinstance(h, Spy))
            live = [norms for when, _, norms in spy.seen if when == 'val']
            assert live == [0, 0] if hooks else min(live) > 20
            states.append(runner.model.module.state_dict())
            losses.append(runner.message_hub.get_scalar('train/loss').data[0])
        assert_same(*states)
        assert (losses[0] == losses[1]).all()
    finally:
        torch.distributed.destroy_process_group()


def test_the_log_names_blocks_and_difference(scenes, tmp_path):
    runner = Runner.from_cfg(runner_cfg(scenes, tmp_path, log_level='INFO', experiment_name='log'))
    runner.val()
    log = next(tmp_path.glob('*/*.log')).read_text()
    changed = '10 RepVGG blocks, 6 conv-BN pairs, 4 dilated convs, 1 pooling pyramids, 9 3x3 convs'
    assert f'Evaluating the deployed form: {changed} by Winograd; largest diff' in log
    assert 'argmax agreement' in log
    assert isinstance(runner.model.backbone.stem, RepVGGBlock)
    assert not runner.model.backbone.stem.deploy


def test_a_wrong_kernel_stops_the_run_and_the_model_survives(scenes, tmp_path, monkeypatch):
    """Negative control of the check on the first batch."""
    right = RepVGGBlock.get_equivalent_kernel_bias

    def wrong(block):
        kernel, bias = right(block)
        return kernel.roll(1, dims=3), bias

    monkeypatch.setattr(RepVGGBlock, 'get_equivalent_kernel_bias', wrong)
    runner = Runner.from_cfg(runner_cfg(scenes, tmp_path))
    before = runner.model
    with pytest.raises(
        EquivalenceError, match='RepVGGDeployHook: the rewritten model is not equal'
    ):
        runner.val()
    monkeypatch.undo()
    # the next evaluation and the next training start from the training form again
    runner.call_hook('before_train_epoch')
    assert runner.model is before
    runner.val()


def test_training_a_fused_model_and_wrong_settings_are_errors(scenes, tmp_path):
    cfg = runner_cfg(scenes, tmp_path)
    cfg.model.backbone.deploy = True
    with pytest.raises(RuntimeError, match='build it with deploy=False'):
        Runner.from_cfg(cfg).train()
    cfg = runner_cfg(scenes, tmp_path / 'r50')
    cfg.model.backbone = dict(type='ResNetV1c', depth=18, norm_cfg=dict(type='BN'))
    cfg.model.decode_head.in_channels, cfg.model.auxiliary_head.in_channels = 512, 256
    with pytest.raises(ValueError, match='holds no RepVGG block'):
        Runner.from_cfg(cfg).val()
    with pytest.raises(ValueError, match='name at least one of'):
        RepVGGDeployHook(rewrites=['fuse'])
    with pytest.raises(ValueError, match='tolerance=0 must be positive'):
        RepVGGDeployHook(tolerance=0)


def test_a_block_without_fused_form_is_refused_before_training(scenes, tmp_path):
    cfg = runner_cfg(scenes, tmp_path, max_iters=2, experiment_name='relu')
    cfg.model.backbone.block = 'relu_in_branches'
    runner = Runner.from_cfg(cfg)
    with pytest.raises(ValueError, match="block='relu_in_branches' cannot be fused"):
        runner.train()
    assert runner.iter == 0
    cfg.custom_hooks[0].rewrites = ['batchnorm']
    cfg.experiment_name, cfg.log_level = 'batchnorm', 'INFO'
    Runner.from_cfg(cfg).train()
    # the 3x3 and 1x1 convs of ten blocks, and 6 of the heads
    logs = [path.read_text() for path in tmp_path.glob('*/*.log')]
    assert any('Evaluating the deployed form: 26 conv-BN pairs; largest' in log for log in logs)


def test_it_evaluates_a_fused_model_as_it_is(scenes, tmp_path):
    """Fusing twice is fusing once."""
    cfg = runner_cfg(scenes, tmp_path)
    cfg.model.backbone.deploy = True
    assert 'mIoU' in Runner.from_cfg(cfg).test()
