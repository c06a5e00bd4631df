"""RepVGGDeployHook beside everything else that touches a run: nothing differs but the form.

Each case is run in real Runners without and with the hook. Losses and checkpoints must be the same
to the last bit, metrics the same (fused and unfused agree in every pixel or nearly so), and each
case shows that its company was there.
"""

import copy
import json
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.hooks import Hook, PrepareTTAHook
from mmengine.model import BaseModel, MMDistributedDataParallel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_repvgg.engine import RepVGGDeployHook, launch
from mmseg_repvgg.reparam import apply_rewrites
from tests.common import runner_cfg

DEPLOY = dict(type='RepVGGDeployHook')
TRAINING_KEY = 'backbone.stem.branch_1x1.conv.weight'


@HOOKS.register_module(force=True)
class NormCounter(Hook):
    """Counts the BatchNorms of what computes each batch: 0 in the deployed form."""

    priority = 'LOW'

    def __init__(self):
        self.counts, self._forward = [], BaseModel._run_forward

    def before_val_epoch(self, runner):
        def counted(model, data, mode):
            if mode == 'predict' and not isinstance(model, MMDistributedDataParallel):
                self.counts.append(sum(isinstance(m, _BatchNorm) for m in model.modules()))
            return self._forward(model, data, mode)

        BaseModel._run_forward = counted

    def after_val_epoch(self, runner, metrics=None):
        BaseModel._run_forward = self._forward

    before_test_epoch, after_test_epoch = before_val_epoch, after_val_epoch


@HOOKS.register_module(force=True)
class SaveInTheMidst(Hook):
    """Saves while an evaluation runs, as a scheduler's signal may ask for."""

    priority = 'LOW'

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        name = f'midst_{runner.iter}.pth'
        runner.save_checkpoint(
            str(runner.work_dir), name, save_optimizer=False, save_param_scheduler=False
        )


@HOOKS.register_module(force=True)
class FuseInPlace(Hook):
    """Negative control: fuses the training model itself for the last validation."""

    def before_val_epoch(self, runner):
        if runner.iter == 4:
            apply_rewrites(runner.model, ['branches'])


@HOOKS.register_module(force=True)
class Drifting(Hook):
    """Negative control: an evaluation that leaves a trace in the weights."""

    def after_val_epoch(self, runner, metrics=None):
        next(runner.model.parameters()).data.add_(1e-6)


@dataclass
class Outcome:
    """What a run left."""

    runner: Runner
    losses: list[float]
    scores: list[float]
    evaluated: list[int]  # BatchNorms of the evaluated model, for every image
    checkpoints: dict[str, dict[str, Any]]


def run(scenes, work_dir, changes, hooks, acts=('train',), wrap=False) -> Outcome:
    """Build a Runner, call its ``acts`` one after the other, and read what it wrote."""
    cfg = runner_cfg(scenes, work_dir, custom_hooks=[], experiment_name=work_dir.name)
    cfg.merge_from_dict(copy.deepcopy(changes))
    given = [*cfg.custom_hooks, *hooks, dict(type='NormCounter')]
    runner, scores = Runner.from_cfg(cfg), []
    runner.register_custom_hooks(given)
    for act in acts:
        if wrap and not is_model_wrapper(runner.model):
            runner.model = MMDistributedDataParallel(runner.model)
        found = getattr(runner, act)()
        scores += [found['mIoU']] if act != 'train' else []
    logged = [json.loads(line) for line in _log(work_dir)]
    scores += [line['mIoU'] for line in logged if 'mIoU' in line]
    counter = next(h for h in runner.hooks if isinstance(h, NormCounter))
    return Outcome(
        runner=runner,
        losses=[line['loss'] for line in logged if 'loss' in line],
        scores=scores,
        evaluated=counter.counts,
        checkpoints={
            file.name: torch.load(file, weights_only=False) for file in work_dir.glob('*.pth')
        },
    )


def _log(work_dir: Path) -> list[str]:
    return [
        line
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]


def assert_undisturbed(without: Outcome, deployed: Outcome) -> None:
    """Same losses, metrics and checkpoints; every checkpoint in training form."""
    assert without.losses == deployed.losses and without.losses
    assert without.scores == pytest.approx(deployed.scores, abs=0.05) and without.scores
    assert set(without.evaluated) != {0} and set(deployed.evaluated) == {0}
    assert len(without.evaluated) == len(deployed.evaluated)
    assert without.checkpoints.keys() == deployed.checkpoints.keys() != set()
    for name, expected in without.checkpoints.items():
        found = deployed.checkpoints[name]
        assert found.keys() == expected.keys(), name
        for part in ('state_dict', 'ema_state_dict'):
            assert_same(expected.get(part, {}), found.get(part, {}), f'{name}: {part}')
        assert TRAINING_KEY in found['state_dict'], name
    # and the runner itself is left with the model it had
    assert_same(_plain_state(without.runner), _plain_state(deployed.runner), 'runner.model')


def _plain_state(runner: Runner) -> dict[str, torch.Tensor]:
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    return model.state_dict()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], what: str) -> None:
    assert list(a) == list(b), what
    for name in a:
        assert torch.equal(a[name], b[name]), f'{what}: {name}'


@dataclass
class Company:
    """Changes of the config, what is called, and what shows that the company was there."""

    changes: dict[str, Any]
    was_there: Callable[[Outcome], bool]
    acts: tuple[str, ...] = ('train',)
    wrap: bool = False
    marks: list[Any] = field(default_factory=list)


def hooks(*given: dict[str, Any]) -> dict[str, Any]:
    return dict(custom_hooks=list(given))


EMA = dict(type='EMAHook', momentum=0.3)
STOP = dict(type='EarlyStoppingHook', monitor='mIoU', patience=1, min_delta=100.0)
BEST = {'default_hooks.checkpoint.save_best': 'mIoU', 'default_hooks.checkpoint.rule': 'greater'}
ACCUMULATE = {'optim_wrapper.accumulative_counts': 2}
CHECKPOINTED = {'model.backbone.with_cp': True}
LONGER = {'train_cfg.max_iters': 8}
MIDST = dict(type='SaveInTheMidst')
SLOW = [pytest.mark.slow]


def has_ema(outcome: Outcome) -> bool:
    state = outcome.checkpoints['iter_4.pth']
    averaged, last = state['state_dict'], state['ema_state_dict']
    return not torch.equal(averaged[TRAINING_KEY], last[f'module.{TRAINING_KEY}'])


def has_best(outcome: Outcome) -> bool:
    return any(name.startswith('best_mIoU') for name in outcome.checkpoints)


def has_accumulated(outcome: Outcome) -> bool:
    return outcome.runner.optim_wrapper._accumulative_counts == 2


def has_stopped(outcome: Outcome) -> bool:
    return outcome.runner.iter == 4 < outcome.runner.max_iters


def has_recomputed(outcome: Outcome) -> bool:
    return all(block.with_cp for block in outcome.runner.model.backbone.stage_2)


COMPANIES = {
    'all at once': Company(
        {**BEST, **ACCUMULATE, **CHECKPOINTED, **LONGER, **hooks(EMA, STOP)}
        | {'default_hooks.checkpoint.interval': 4},
        lambda outcome: (
            has_ema(outcome)
            and has_best(outcome)
            and has_accumulated(outcome)
            and has_stopped(outcome)
            and has_recomputed(outcome)
        ),
    ),
    'val before train, test after, saving during a validation': Company(
        hooks(EMA, MIDST),
        lambda outcome: {'midst_0.pth', 'midst_2.pth'} < set(outcome.checkpoints),
        acts=('val', 'train', 'test'),
        marks=SLOW,
    ),
    'EMA': Company(hooks(EMA), has_ema, marks=SLOW),
    'gradient accumulation': Company(ACCUMULATE, has_accumulated, marks=SLOW),
    'torch.compile': Company(
        dict(compile=dict(backend='eager')),
        lambda outcome: 'train_step' in vars(outcome.runner.model),
        acts=('train', 'test'),
        marks=SLOW,
    ),
    'torch.compile by AOT autograd': Company(
        dict(compile=dict(backend='aot_eager')),
        lambda outcome: 'train_step' in vars(outcome.runner.model),
        marks=SLOW,
    ),
    'with_cp': Company(CHECKPOINTED, has_recomputed, marks=SLOW),
    'early stopping': Company({**LONGER, **hooks(STOP)}, has_stopped, marks=SLOW),
    'best checkpoint': Company(BEST, has_best, marks=SLOW),
    'val before train': Company(
        {}, lambda outcome: len(outcome.scores) >= 3, acts=('val', 'train'), marks=SLOW
    ),
    'test after train': Company(
        {}, lambda outcome: len(outcome.scores) >= 3, acts=('train', 'test'), marks=SLOW
    ),
    'evaluation under autocast': Company(
        {'val_cfg.fp16': True},
        lambda outcome: outcome.runner.val_loop.fp16,
        marks=SLOW,
    ),
    'DDP': Company(
        {**BEST, **hooks(EMA)},
        lambda outcome: is_model_wrapper(outcome.runner.model) and has_best(outcome),
        acts=('train', 'test'),
        wrap=True,
        marks=SLOW,
    ),
}


@contextmanager
def process_group(wanted: bool):
    if not wanted:
        yield
        return
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group('gloo', store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings('ignore:.*torch.utils.checkpoint')
@pytest.mark.parametrize(
    'company', [pytest.param(c, id=name, marks=c.marks) for name, c in COMPANIES.items()]
)
def test_nothing_differs_but_the_form(scenes, tmp_path, company):
    with process_group(company.wrap):
        outcomes = [
            run(scenes, tmp_path / name, company.changes, own, company.acts, company.wrap)
            for name, own in (('without', []), ('with', [DEPLOY]))
        ]
        for outcome in outcomes:
            assert company.was_there(outcome)
        assert_undisturbed(*outcomes)


@pytest.mark.slow
def test_the_companions_alone_do_not_pass_for_another(scenes, tmp_path):
    """Negative control of ``was_there``: in a plain run none of the companies is found."""
    plain = run(scenes, tmp_path / 'plain', {}, [])
    assert not any((has_best(plain), has_accumulated(plain), has_stopped(plain)))
    assert not has_recomputed(plain)
    assert 'ema_state_dict' not in plain.checkpoints['iter_4.pth']
    for trouble in ('FuseInPlace', 'Drifting'):  # negative controls of assert_undisturbed
        spoilt = run(scenes, tmp_path / trouble, {}, [dict(type=trouble)])
        spoilt.evaluated = [0] * len(plain.evaluated)
        with pytest.raises(AssertionError):
            assert_undisturbed(plain, spoilt)


class Guest(Hook):
    """In the middle of a validation it validates and trains another model."""

    priority = 'LOW'

    def __init__(self, runner):
        self.runner, self.scores = runner, []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 1 and runner.iter == 2:
            self.scores.append(self.runner.val()['mIoU'])
            with torch.enable_grad():  # a validation has switched it off
                self.runner.train()


@pytest.mark.slow
@pytest.mark.parametrize('shared', [False, True], ids=['a hook each', 'one hook for both'])
def test_several_models_in_one_process(scenes, tmp_path, shared):
    """One is validated and trained while the fused copy of the other is live."""
    outcomes = []
    for name, own in (('without', lambda: None), ('with', RepVGGDeployHook)):
        first = own()
        second = first if shared else own()
        folder = tmp_path / name
        cfg = runner_cfg(scenes, folder / 'guest', custom_hooks=[], randomness=dict(seed=5))
        guest = Runner.from_cfg(cfg)
        hook = Guest(guest)
        own_hooks = [[h] if h else [] for h in (first, second)]
        guest.register_custom_hooks(own_hooks[1])
        host = run(scenes, folder / 'host', {}, [*own_hooks[0], hook])
        states = [_plain_state(guest), _plain_state(host.runner)]
        outcomes.append((host, hook.scores, states))
    (host, scores, states), (host_2, scores_2, states_2) = outcomes
    assert_undisturbed(host, host_2)
    assert scores == pytest.approx(scores_2, abs=0.05) and len(scores) == 1
    for state, state_2 in zip(states, states_2, strict=True):
        assert_same(state, state_2, 'a model')
    assert not torch.equal(states[0][TRAINING_KEY], states[1][TRAINING_KEY])


def tta_cfg(scenes, work_dir, own_hooks):
    views = [
        [dict(type='Resize', scale_factor=factor, keep_ratio=True) for factor in (0.75, 1.0)],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]
    augmented = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=views)]
    return runner_cfg(
        scenes,
        work_dir,
        custom_hooks=[*own_hooks, dict(type='NormCounter')],
        experiment_name=work_dir.name,
        tta_model=dict(type='SegTTAModel'),
        tta_pipeline=augmented,
    )


@pytest.mark.slow
def test_test_time_augmentation(scenes, tmp_path):
    """By ``tools/test.py --tta``, and by mmengine's PrepareTTAHook after a training."""
    scores = []
    for name, own in (('without', []), ('with', [DEPLOY])):
        cfg = tta_cfg(scenes, tmp_path / name, own)
        runner = Runner.from_cfg(cfg)
        runner.train()
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        runner = Runner.from_cfg(copy.deepcopy(cfg))
        runner.load_checkpoint(str(tmp_path / name / 'iter_4.pth'))
        runner.register_hook(PrepareTTAHook(dict(cfg.tta_model)))
        prepared = runner.test()['mIoU']
        counter = next(h for h in runner.hooks if isinstance(h, NormCounter))
        assert (set(counter.counts) == {0}) == bool(own)
        cfg = tta_cfg(scenes, tmp_path / name, own)
        file = str(tmp_path / name / 'iter_4.pth')
        scores.append((prepared, launch.test(cfg, file, tta=True)['mIoU']))
        cfg = tta_cfg(scenes, tmp_path / name, own)
        plain = launch.test(cfg, file)['mIoU']
    assert scores[0] == pytest.approx(scores[1], abs=0.05)
    assert scores[0][0] == pytest.approx(scores[0][1], abs=1e-6)
    assert abs(plain - scores[0][0]) > 1e-3  # the views do act
