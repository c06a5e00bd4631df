"""RepVGGDeployHook in a real Runner: what it evaluates, and that training never notices."""

import copy
import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook
from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.reparam import deployed_copy
from mmseg_repvgg.reparam.equivalence import EquivalenceError
from tests.common import TINY, runner_cfg


@pytest.fixture
def evaluated(monkeypatch):
    """For every image that is evaluated, the model that computes it and its BatchNorms."""
    found = []
    for step in ('val_step', 'test_step'):
        right = getattr(BaseModel, step)

        def noted(model, data, right=right):
            found.append((model, sum(isinstance(m, _BatchNorm) for m in model.modules())))
            return right(model, data)

        monkeypatch.setattr(BaseModel, step, noted)
    return found


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


@pytest.mark.parametrize(
    'others', [[], pytest.param([EMA], marks=pytest.mark.slow)], ids=['alone', 'with EMA']
)
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
    ('priority', 'first'),
    [
        ('VERY_HIGH', True),
        ('LOW', False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (('VERY_HIGH', False), ('NORMAL', True), ('NORMAL', False), ('LOW', True))
        ),
    ],
)
def test_the_fused_form_is_that_of_the_ema_at_any_priority(
    scenes, tmp_path, priority, first, evaluated
):
    hooks = [dict(EMA, priority=priority), dict(type='RepVGGDeployHook')]
    runner, _, checkpoint = run(scenes, tmp_path, hooks if first else hooks[::-1])
    assert [norms for _, norms in evaluated] == [0] * 6
    assert len({id(model) for model, _ in evaluated}) == 2  # a copy for each validation
    assert checkpoint['state_dict'].keys() == runner.model.state_dict().keys()
    # the checkpoint's state_dict holds the averaged weights: fused, they are what was evaluated
    averaged = copy.deepcopy(runner.model)
    averaged.load_state_dict(checkpoint['state_dict'])
    fused, _ = deployed_copy(averaged, ['branches'])
    bias = 'backbone.stage_1.1.branch_reparam.bias'
    last = evaluated[-1][0].state_dict()[bias]
    assert torch.equal(last, fused.state_dict()[bias])
    trained, _ = deployed_copy(runner.model, ['branches'])  # negative control
    assert not torch.equal(last, trained.state_dict()[bias])


def test_registered_twice_it_acts_once(scenes, tmp_path, evaluated):
    hook = dict(type='RepVGGDeployHook')
    runner, _, _ = run(scenes, tmp_path, [hook, copy.deepcopy(hook)])
    assert [norms for _, norms in evaluated] == [0] * 6
    assert not {'val_step', 'test_step'} & set(vars(runner.model))


@HOOKS.register_module(force=True)
class Interruption(Hook):
    """Ctrl-C in the first validation, before or after an image."""

    priority = 'LOW'
    when: ClassVar[str] = ''

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._interrupt('before')

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._interrupt('after')

    def _interrupt(self, when):
        if Interruption.when == when:
            Interruption.when = ''
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ('when', 'first'),
    [
        ('after', 'train'),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (('before', 'val'), ('before', 'train'), ('after', 'val'))
        ),
    ],
)
def test_after_an_interrupted_validation_everything_is_as_without_the_hook(
    scenes, tmp_path, when, first, evaluated
):
    Interruption.when = when
    hooks = [dict(type='RepVGGDeployHook'), dict(type='Interruption')]
    runner = Runner.from_cfg(runner_cfg(scenes, tmp_path, custom_hooks=hooks))
    model = runner.model
    with pytest.raises(KeyboardInterrupt):
        getattr(runner, first)()
    assert runner.model is model
    # weights that are loaded now are those that the next validation evaluates
    other = {name: value.clone() for name, value in model.state_dict().items()}
    key = 'backbone.stage_1.1.branch_3x3.conv.weight'
    other[key] += 1
    torch.save(dict(state_dict=other, meta={}), tmp_path / 'other.pth')
    runner.load_checkpoint(str(tmp_path / 'other.pth'))
    assert torch.equal(runner.model.state_dict()[key], other[key])
    runner.val()
    fused, _ = deployed_copy(model, ['branches'])
    kernel = 'backbone.stage_1.1.branch_reparam.weight'
    assert torch.equal(evaluated[-1][0].state_dict()[kernel], fused.state_dict()[kernel])
    # and a training trains the model itself
    before = model.state_dict()[key].clone()
    runner.train()
    assert runner.model is model
    assert not torch.equal(model.state_dict()[key], before)
    held = {id(p) for group in runner.optim_wrapper.param_groups for p in group['params']}
    assert held == {id(p) for p in model.parameters()}


class Classifier(BaseModel):
    """As mmengine's tutorial: ``forward(imgs, labels, mode)``, and batches are tuples."""

    def __init__(self):
        super().__init__()
        self.backbone = DilatedRepVGG(TINY)
        self.fc = nn.Linear(64, 10)
        self.register_module('neck', None)  # an optional part that is not there

    def forward(self, imgs, labels, mode):
        scores = self.fc(self.backbone(imgs)[-1].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(scores, labels))
        return scores, labels


class OfDicts(Classifier):
    """Batches are dicts, and the data preprocessor is mmengine's BaseDataPreprocessor."""

    def forward(self, inputs, labels=None, mode='tensor'):
        scores = super().forward(inputs, labels, mode)
        return scores if mode == 'loss' else scores[:1]


class WithFusedTeacher(OfDicts):
    """A frozen, fused teacher beside the student."""

    def __init__(self):
        super().__init__()
        self.teacher = DilatedRepVGG(TINY)
        self.teacher.switch_to_deploy()
        self.teacher.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs, labels=None, mode='tensor'):
        with torch.no_grad():
            assert self.teacher(inputs)[-1].isfinite().all()
        return super().forward(inputs, labels, mode)


class CompiledBackbone(OfDicts):
    """A sub-module that torch.compile wraps."""

    def __init__(self):
        super().__init__()
        self.backbone = torch.compile(self.backbone, backend='eager')

    def init_weights(self):
        """mmengine's own fails on wrapped sub-modules."""


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(len(data_samples))

    def compute_metrics(self, results):
        return dict(batches=len(results))


@pytest.mark.parametrize(
    'kind',
    [Classifier, OfDicts, WithFusedTeacher, pytest.param(CompiledBackbone, marks=pytest.mark.slow)],
)
def test_models_other_than_segmentors(kind, tmp_path, evaluated, monkeypatch):
    images = [(torch.randn(3, 32, 32), i) for i in range(4)]
    data = images if kind is Classifier else [dict(inputs=x, labels=i) for x, i in images]

    def runner_of(name):
        return Runner(
            model=kind(),
            work_dir=str(tmp_path / name),
            train_dataloader=DataLoader(data, batch_size=2),
            val_dataloader=DataLoader(data, batch_size=2),
            val_evaluator=Evaluator([Count()]),
            train_cfg=dict(by_epoch=True, max_epochs=1, val_interval=1),
            val_cfg=dict(),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
            custom_hooks=[dict(type='RepVGGDeployHook')],
            experiment_name=f'{kind.__name__}-{name}',
            log_level='ERROR',
            default_scope='mmengine',
        )

    runner_of('right').train()
    # of tuples, the comparison has evaluated the first batch in both forms
    expected = [25, 0, 0, 0] if kind is Classifier else [0, 0]
    assert [norms for _, norms in evaluated] == expected
    right = RepVGGBlock.get_equivalent_kernel_bias
    monkeypatch.setattr(  # negative control
        RepVGGBlock, 'get_equivalent_kernel_bias', lambda block: (-right(block)[0], right(block)[1])
    )
    with pytest.raises(EquivalenceError):
        runner_of('wrong').train()


def test_a_model_wrapped_in_ddp_stays_wrapped(scenes, tmp_path, evaluated):
    from mmengine.model import MMDistributedDataParallel

    torch.distributed.init_process_group(
        'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        states, losses = [], []
        for name, hooks in (('without', []), ('with', [dict(type='RepVGGDeployHook')])):
            evaluated.clear()
            # runs of one second would share the log of one name
            changes = dict(custom_hooks=hooks, experiment_name=f'ddp {name}')
            cfg = runner_cfg(scenes, tmp_path / name, **changes)
            runner = Runner.from_cfg(cfg)
            runner.model = MMDistributedDataParallel(runner.model)
            runner.train()
            assert isinstance(runner.model, MMDistributedDataParallel)
            norms = [count for _, count in evaluated]
            assert norms == [0] * 6 if hooks else min(norms) > 20
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
    changed = '10 blocks, 6 conv-BN pairs, 4 dilated convs, 1 pooling pyramids, 9 3x3 convs'
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
        EquivalenceError, match='RepVGGDeployHook: the rewritten .* remove .* from custom_hooks'
    ):
        runner.val()
    monkeypatch.undo()
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
