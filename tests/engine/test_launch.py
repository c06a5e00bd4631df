"""Configs as people write them, through launch.train and launch.test."""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS, DefaultScope

from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.engine import LoadCheckHook, launch
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.engine.data_settings import check_data
from tests.common import runner_cfg

DEFAULT = dict(type='DefaultSampler', shuffle=True)
OURS = ('LoadCheckHook', 'LabelCheckHook', 'StepSeedHook', 'SafeCheckpointHook')


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """mmengine waits two seconds whenever an epoch of an iteration-based training ends."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)


def train(scenes, work_dir, max_iters=4, name='', resume=False, **changes):
    """Without validation; keys are dotted."""
    cfg = runner_cfg(scenes, work_dir, max_iters, val_interval=100, custom_hooks=[])
    cfg.experiment_name = f'{work_dir}{name}{max_iters}'
    cfg.merge_from_dict(copy.deepcopy(changes))
    return launch.train(cfg, resume=resume)


def losses(work_dir: Path) -> list[float]:
    """In the order in which they were logged."""
    files = sorted(work_dir.glob('*/vis_data/scalars.json'))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line['loss'] for line in lines if 'loss' in line]


@pytest.mark.parametrize(
    ('stop', 'workers'),
    [
        pytest.param(2, 0, id='within an epoch'),
        pytest.param(3, 0, id='at its end', marks=pytest.mark.slow),
        pytest.param(5, 0, id='in the next', marks=pytest.mark.slow),
        pytest.param(5, 2, id='in the next, with workers', marks=pytest.mark.slow),
    ],
)
def test_a_sampler_of_epochs_resumes_where_it_was(scenes, tmp_path, stop, workers):
    """Six images in batches of two: three steps an epoch."""
    changes = {
        'train_dataloader.sampler': dict(DEFAULT, _delete_=True),
        'train_dataloader.num_workers': workers,
    }
    train(scenes, tmp_path / 'whole', 8, **changes)
    train(scenes, tmp_path / 'parts', stop, **changes)
    train(scenes, tmp_path / 'parts', 8, resume=True, **changes)
    whole = losses(tmp_path / 'whole')
    assert len(set(whole)) == 8
    assert losses(tmp_path / 'parts') == whole


@pytest.mark.parametrize(
    'seed',
    [pytest.param(dict(seed=None), marks=pytest.mark.slow), {}],
    ids=['None', 'not given'],
)
def test_a_training_without_a_seed_resumes_with_that_of_its_checkpoint(scenes, tmp_path, seed):
    seedless = dict(randomness=dict(seed, _delete_=True, deterministic=True))
    first = train(scenes, tmp_path, 2, **seedless)
    assert train(scenes, tmp_path, 4, resume=True, **seedless).seed == first.seed
    assert len(losses(tmp_path)) == 4


def test_resume_in_a_config_is_not_ignored_in_silence(scenes, tmp_path):
    cfg = runner_cfg(scenes, tmp_path, 2, resume=True, custom_hooks=[])
    with pytest.warns(UserWarning, match='resume=True of the config has no effect.*--resume'):
        assert launch.train(cfg).iter == 2


@pytest.mark.parametrize(
    ('last', 'batch_size', 'said'),
    [
        (
            'iter_4',
            2,
            r'Resumed after 4 iterations, but epoch 2 starts after 3: .* \+1 iterations off',
        ),
        pytest.param(
            'iter_3',
            2,
            r'Resumed after 3 iterations, but epoch 1 starts after 0: .* \+3 iterations off',
            marks=pytest.mark.slow,
        ),
        pytest.param(
            'epoch_1',
            3,
            r'Resumed after 3 iterations, but epoch 2 starts after 2: .* \+1 iterations off',
            marks=pytest.mark.slow,
        ),
        pytest.param('epoch_1', 2, '', marks=pytest.mark.slow),
    ],
)
def test_an_epoch_that_is_trained_again_is_said(scenes, tmp_path, last, batch_size, said):
    """Six images, in batches of two: three steps an epoch."""
    changes = {
        'train_dataloader.sampler': dict(DEFAULT, _delete_=True),
        'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2),
        'default_hooks.checkpoint': dict(interval=1, by_epoch=last.startswith('epoch')),
    }
    train(scenes, tmp_path, **changes)
    changes['train_dataloader.batch_size'] = batch_size
    train(scenes, tmp_path, name='resumed', resume=str(tmp_path / f'{last}.pth'), **changes)
    text = ''.join(file.read_text() for file in tmp_path.glob('*/*.log'))
    assert re.search(said, text)
    assert ('Resumed after' in text) == bool(said)


@TRANSFORMS.register_module(force=True)
class Switched:
    """A transform that is only in the other pipeline."""

    def __call__(self, results):
        return dict(results, switched=True)


@HOOKS.register_module(force=True)
class SwitchPipeline(Hook):
    """Sets the pipeline for the second epoch, as mmpretrain's SwitchRecipeHook and mmdet's do."""

    def __init__(self):
        self.seen = []

    def before_train_epoch(self, runner):
        from mmseg.registry import TRANSFORMS as MMSEG

        dataset = runner.train_dataloader.dataset
        if runner.epoch == 1:
            pack = dict(type='PackSegInputs', meta_keys=('switched', 'img_shape'))
            transforms = [*dataset.pipeline.transforms[:-1], Switched(), MMSEG.build(pack)]
            dataset.pipeline = type(dataset.pipeline)(transforms)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen += [sample.get('switched', False) for sample in data_batch['data_samples']]


def test_a_pipeline_that_a_hook_sets_is_used(scenes, tmp_path):
    runner = train(
        scenes,
        tmp_path,
        **{
            'train_dataloader.sampler': dict(DEFAULT, _delete_=True),
            'custom_hooks': [dict(type='SwitchPipeline')],
            'train_cfg': dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2),
        },
    )
    (hook,) = [hook for hook in runner.hooks if isinstance(hook, SwitchPipeline)]
    assert hook.seen == [False] * 6 + [True] * 6


def names(runner):
    return [type(hook).__name__ for hook in runner.hooks]


@pytest.mark.slow
@pytest.mark.parametrize('times', [1, 2])
def test_hooks_of_the_config_are_not_registered_again(scenes, tmp_path, times):
    """Nor do two of a kind do more than one: the losses and files of a resumed training."""
    found = []
    for name, hooks in (('plain', []), ('own', [dict(type=name) for name in OURS] * times)):
        for hook in hooks:
            if hook['type'] == 'SafeCheckpointHook':
                hook.update(by_epoch=False, interval=2, max_keep_ckpts=1)
        changes = {'custom_hooks': hooks, 'default_hooks.checkpoint.max_keep_ckpts': 1}
        train(scenes, tmp_path / name, 2, **changes)
        runner = train(scenes, tmp_path / name, 4, resume=True, **changes)
        files = sorted(file.name for file in (tmp_path / name).glob('*.pth'))
        found.append((losses(tmp_path / name), files))
    counts = [names(runner).count(name) for name in OURS]
    assert counts == [times, times, times, times + 1]  # the config's checkpoint hook is one more
    assert found[0] == found[1] and found[0][1] == ['iter_4.pth']


def test_a_config_can_be_used_again(scenes, tmp_path):
    cfg = runner_cfg(scenes, tmp_path, 2, custom_hooks=[], optim_wrapper=dict(clip_grad=None))
    cfg.optim_wrapper.optimizer = dict(type='SGD', lr=0.01)
    cfg.tta_model = dict(type='SegTTAModel')
    flips = [dict(type='RandomFlip', prob=p) for p in (0.0, 1.0)]
    views = [flips, [dict(type='LoadAnnotations')], [dict(type='PackSegInputs')]]
    cfg.tta_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='TestTimeAug', transforms=views),
    ]
    before = copy.deepcopy(cfg)
    launch.train(cfg, amp=True)
    launch.test(cfg, str(tmp_path / 'iter_2.pth'), tta=True, out=str(tmp_path / 'out'))
    assert cfg.to_dict() == before.to_dict()


@pytest.mark.slow
def test_the_share_of_weights_that_a_config_requires_is_for_training(scenes, tmp_path):
    hooks = [dict(type='LoadCheckHook', required=0.1)]

    def required(runner):
        (hook,) = [hook for hook in runner.hooks if isinstance(hook, LoadCheckHook)]
        return hook.required

    assert required(train(scenes, tmp_path, 2, custom_hooks=hooks)) == 0.1
    assert required(train(scenes, tmp_path, 4, resume=True, custom_hooks=hooks)) == 1


PURE_PYTHON = """
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import OptimWrapper
from mmengine.runner import IterBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from mmcv.transforms import LoadImageFromFile
from mmseg.datasets import CityscapesDataset, LoadAnnotations, PackSegInputs
from mmseg.datasets.transforms import RandomCrop
from mmseg.evaluation import IoUMetric
from mmseg.models import EncoderDecoder, FCNHead, SegDataPreProcessor
from mmseg.visualization import SegLocalVisualizer
from mmseg_repvgg.engine import RepVGGDeployHook
from mmseg_repvgg.models import DilatedRepVGG
from torch.optim import SGD

default_scope = 'mmseg'
norm_cfg = dict(type='BN')
model = dict(
    type=EncoderDecoder,
    data_preprocessor=dict(type=SegDataPreProcessor, size=(64, 64)),
    backbone=dict(
        type=DilatedRepVGG,
        arch=dict(num_blocks=(1, 1, 1, 1), width_factor=(0.125,) * 4),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type=FCNHead, in_channels=64, in_index=3, channels=8, num_classes=19, norm_cfg=norm_cfg
    ),
    test_cfg=dict(mode='whole'),
)
pipeline = [dict(type=LoadImageFromFile), dict(type=LoadAnnotations)]
crop, pack = [dict(type=RandomCrop, crop_size=(64, 64))], [dict(type=PackSegInputs)]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type=InfiniteSampler, shuffle=True),
    dataset=dict(
        type=CityscapesDataset,
        data_root=ROOT,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
        pipeline=pipeline + crop + pack,
    ),
)
test_dataloader = val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=CityscapesDataset,
        data_root=ROOT,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=pipeline + pack,
    ),
)
val_evaluator = dict(type=IoUMetric, iou_metrics=['mIoU'])
test_evaluator = [val_evaluator]
train_cfg = dict(type=IterBasedTrainLoop, max_iters=4, val_interval=4)
val_cfg, test_cfg = dict(type=ValLoop), dict(type=TestLoop)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.01))
default_hooks = dict(
    logger=dict(type=LoggerHook, interval=1, log_metric_by_epoch=False),
    checkpoint=dict(type=CheckpointHook, by_epoch=False, interval=2, max_keep_ckpts=1),
)
custom_hooks = [dict(type=RepVGGDeployHook)]
log_processor = dict(by_epoch=False)
visualizer = dict(type=SegLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)], name='pure')
randomness = dict(seed=0)
log_level = 'WARNING'
"""


def test_pure_python_configs_are_trained_resumed_and_tested(scenes, tmp_path, family):
    """Their types are classes."""
    file, work_dir = tmp_path / 'pure.py', tmp_path / 'work'
    file.write_text(PURE_PYTHON.replace('ROOT', repr(str(scenes))))

    def config(name, max_iters=4):
        cfg = launch.load_config(file)
        cfg.experiment_name, cfg.train_cfg.max_iters = f'{tmp_path}{name}', max_iters
        return cfg

    runner = launch.train(config('a'), str(work_dir), amp=True)
    assert 'SafeCheckpointHook' in names(runner) and 'CheckpointHook' not in names(runner)
    assert type(runner.train_dataloader.sampler).__name__ == 'SeededSampler'
    assert type(runner.optim_wrapper).__name__ == 'CpuAmpOptimWrapper'
    launch.train(config('b', 6), str(work_dir), resume=True)
    assert len(losses(work_dir)) == 6
    out = tmp_path / 'out'
    launch.test(config('c'), str(work_dir / 'iter_6.pth'), str(tmp_path / 'test'), out=str(out))
    assert len(list(out.iterdir())) == 3
    if family == 'onedl':  # its dumps of such configs name modules without importing them
        return
    dumped = launch.load_config(work_dir / 'pure.py', {'experiment_name': f'{tmp_path}d'})
    launch.test(dumped, str(work_dir / 'iter_6.pth'), str(tmp_path / 'again'))


CHILD = """
from mmengine.config import read_base

with read_base():
    from .base import *

from mmseg.models import SegDataPreProcessor
from mmseg_repvgg.models import DilatedRepVGG

default_scope = None  # as in configs of mmdet
data_preprocessor = dict(type=SegDataPreProcessor, size=(64, 64), mean=[120.0] * 3, std=[60.0] * 3)
model.pop('data_preprocessor')
model.backbone = dict(
    type=DilatedRepVGG,
    arch=dict(num_blocks=(1, 1, 2, 1), width_factor=(0.25,) * 4),
    strides=(2, 2, 1, 1),
    dilations=(1, 1, 2, 4),
    norm_cfg=norm_cfg,
)
model.decode_head.update(in_channels=128)
"""


@pytest.mark.slow
def test_a_child_by_read_base_is_trained_tested_and_fused(scenes, tmp_path, family):
    """It has no scope, and its data preprocessor is not in the model."""
    file, work_dir = tmp_path / 'child.py', tmp_path / 'work'
    (tmp_path / 'base.py').write_text(PURE_PYTHON.replace('ROOT', repr(str(scenes))))
    file.write_text(CHILD)
    DefaultScope._instance_dict.clear()  # those of earlier tests
    cfg = Config.fromfile(str(file), lazy_import=True)
    assert cfg.model.to_dict() == launch.load_config(file).model.to_dict()

    def scores(config, checkpoint):
        cfg = launch.load_config(config, {'experiment_name': f'{config}{tmp_path}'})
        return launch.test(cfg, str(checkpoint), str(tmp_path / 'test'))

    runner = launch.train(cfg, str(work_dir))
    assert len(runner.model.backbone.stage_3) == 2
    assert runner.model.data_preprocessor.mean.flatten().tolist() == [120] * 3
    expected = scores(file, work_dir / 'iter_4.pth')
    fused = tmp_path / 'fused' / 'fused.pth'
    report = fuse_checkpoint(launch.load_config(file), work_dir / 'iter_4.pth', fused)
    assert report.counts['branches'] == 6 and report.num_images == 2
    assert scores(report.config, fused) == pytest.approx(expected, abs=0.05)
    if family != 'onedl':  # its dumps of such configs name modules without importing them
        assert scores(work_dir / 'child.py', work_dir / 'iter_4.pth') == expected


def test_broken_chains_of_python_configs_are_named(tmp_path):
    (tmp_path / 'base.py').write_text('import numpy\n')
    head = 'from mmengine.config import read_base\nwith read_base():\n    '
    (tmp_path / 'a.py').write_text(f'{head}from .no import *\n')
    (tmp_path / 'b.py').write_text("_base_ = ['base.py']\n")
    for name, text in (('a.py', 'no.py not found'), ('b.py', 'inheritance chain must match')):
        with pytest.raises(ValueError, match=f'{name} cannot be read as a config: .*{text}'):
            launch.load_config(tmp_path / name)


@pytest.mark.parametrize(
    ('settings', 'name'),
    [
        (dict(type='CheckpointHook'), 'CheckpointHook'),
        (dict(type='mmengine.hooks.CheckpointHook'), 'CheckpointHook'),
        (dict(type=Hook), 'Hook'),
        ({}, 'default'),
    ],
)
def test_types_have_names(settings, name):
    assert type_name(settings, 'default') == name


def scored(scenes, tmp_path, evaluators, **options):
    """The scores of a random model; the evaluators are a list."""
    cfg = runner_cfg(scenes, tmp_path / 'work', custom_hooks=[], experiment_name=str(tmp_path))
    cfg.test_evaluator = evaluators
    return launch.test(cfg, None, out=str(tmp_path / 'out'), **options)


def test_predictions_are_kept_with_several_evaluators(scenes, tmp_path):
    evaluators = [dict(type='IoUMetric'), dict(type='IoUMetric', prefix='b', iou_metrics=['mDice'])]
    scores = scored(scenes, tmp_path, evaluators)
    assert {'mIoU', 'b/mDice'} <= set(scores)
    assert len(list((tmp_path / 'out').glob('*.png'))) == 3
    with pytest.raises(ValueError, match='test_evaluator has DumpResults. Add'):
        scored(scenes, tmp_path, [dict(type='DumpResults', out_file_path='x.pkl')])


def test_amp_is_for_one_optimizer(scenes, tmp_path):
    cfg = runner_cfg(scenes, tmp_path)
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    cfg.optim_wrapper = dict(constructor='Several', encoder=wrapper, decoder=wrapper)
    with pytest.raises(ValueError, match='--amp needs an optim_wrapper with one optimizer'):
        launch.train(cfg, amp=True)


def test_an_exported_model_needs_a_runtime(scenes, tmp_path):
    (tmp_path / 'm.onnx.json').write_text('{}')
    with pytest.raises(ValueError, match=r'm\.onnx is an exported model: .*--runtime'):
        launch.test(runner_cfg(scenes, tmp_path), str(tmp_path / 'm.onnx'))


def loader(dataset, **pipeline):
    transforms = [dict(type='RandomCrop', **pipeline)] if pipeline else []
    return Config(dict(train_dataloader=dict(dataset=dict(dataset, pipeline=transforms))))


def test_data_that_cannot_be_looked_for_are_not_refused(scenes):
    for dataset in (
        dict(data_root='s3://bucket/data'),
        dict(data_root='cluster:s3://bucket/data'),
        dict(data_root='/there', backend_args=dict(backend='petrel')),
        dict(ann_file='files.txt'),
        dict(dataset=dict(data_root=str(scenes))),
    ):
        check_data(loader(dataset), 'train_dataloader')
    check_data(Config(dict(train_dataloader=None)), 'train_dataloader', 'val_dataloader')
    shares = dict(crop_size=(0.5, 0.5), crop_type='relative')  # of mmdet's RandomCrop
    check_data(loader({}, **shares), 'train_dataloader')
    with pytest.raises(ValueError, match='crop_size of RandomCrop'):
        check_data(loader({}, crop_size=(0.5, 0.5)), 'train_dataloader')


@pytest.mark.parametrize(
    ('dataset', 'key'),
    [
        (dict(data_root='no'), 'dataset'),
        (dict(dataset=dict(data_root='no')), 'dataset.dataset'),
        (dict(datasets=[dict(data_root='.'), dict(data_root='no')]), 'dataset.datasets.1'),
    ],
)
def test_missing_data_are_named_within_wrappers(dataset, key):
    option = rf'--cfg-options train_dataloader\.{key}\.data_root=PATH'
    with pytest.raises(FileNotFoundError, match=option):
        check_data(loader(dataset), 'train_dataloader')


def test_infinity_in_a_config_file_is_explained(tmp_path):
    """mmengine itself writes ``inf`` into the config in the work folder."""
    file = tmp_path / 'c.py'
    Config(dict(threshold=float('inf'))).dump(str(file))
    with pytest.raises(ValueError, match=r"name 'inf' is not defined; .* float\('inf'\)"):
        launch.load_config(file)
    file.write_text("threshold = float('inf')")
    assert launch.load_config(file).threshold == float('inf')


def test_the_config_in_the_work_folder_is_complete(scenes, tmp_path):
    """mmseg's own tools can read it: what was put into it is registered by its imports."""
    train(scenes, tmp_path, 2)
    (file,) = tmp_path.glob('*/vis_data/config.py')
    dumped = Config.fromfile(str(file))
    assert type_name(dumped.train_dataloader.sampler) == 'SeededSampler'
    assert dumped.custom_imports.imports == ['mmseg_repvgg']
    shutil.rmtree(tmp_path)
