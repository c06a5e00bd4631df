"""The ImageNet configs, and the same tools and hook on a classifier."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from PIL import Image

from mmseg_repvgg.models import ARCHS

PROJECT = Path(__file__).parents[1]
CONFIGS = PROJECT / 'configs' / 'imagenet'
LONG = {'B2', 'B2g2', 'B2g4', 'B3', 'B3g2', 'B3g4'}
# Tables 4 (120 epochs) and 5 (200 epochs): top-1 accuracy
PRINTED = {
    'repvgg_a0_120e': '72.41', 'repvgg_a1_120e': '74.46', 'repvgg_b0_120e': '75.14',
    'repvgg_a2_120e': '76.48', 'repvgg_b1g4_120e': '77.58', 'repvgg_b1g2_120e': '77.78',
    'repvgg_b1_120e': '78.37', 'repvgg_b2g4_120e': '78.50', 'repvgg_b2_120e': '78.78',
    'repvgg_b2g4_200e': '79.38', 'repvgg_b3g4_200e': '80.21', 'repvgg_b3_200e': '80.52',
}  # fmt: skip
# from other sources than the paper: README of the official code, log of QARepVGG's authors
QUOTED = {'repvgg_l2pse_120e': '84.06', 'qarepvgg_b0_120e': '74.78'}


def test_every_architecture_has_its_recipes_and_quotes_the_paper():
    names = {f'repvgg_{a.lower()}_120e' for a in ARCHS} | {f'repvgg_{a.lower()}_200e' for a in LONG}
    assert {p.stem for p in CONFIGS.glob('*.py')} == names | {'qarepvgg_b0_120e'}
    for path in CONFIGS.glob('*.py'):
        docstring = path.read_text().split('"""')[1]
        assert path.name in docstring
        printed = {**PRINTED, **QUOTED}.get(path.stem, 'the paper prints no accuracy')
        assert printed in docstring, path


def test_qarepvgg_has_the_parameters_of_its_authors():
    """n_parameters in their B0_log.txt, of the training form with its classifier."""
    cfg = Config.fromfile(CONFIGS / 'qarepvgg_b0_120e.py')
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == 15808616


@pytest.mark.parametrize('path', sorted(CONFIGS.glob('*.py')), ids=lambda p: p.stem)
def test_the_recipe_is_that_of_section_4_1(path):
    cfg = Config.fromfile(path)
    sgd = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert cfg.optim_wrapper.optimizer == sgd
    assert cfg.optim_wrapper.paramwise_cfg == dict(norm_decay_mult=0.0, bias_decay_mult=0.0)
    assert cfg.train_dataloader.batch_size * 8 == 256
    assert cfg.custom_hooks[0].type == 'RepVGGDeployHook'
    types = [t.type for t in cfg.train_dataloader.dataset.pipeline]
    schedules = [s.type for s in cfg.param_scheduler]
    if path.stem.endswith('_120e'):
        assert cfg.train_cfg.max_epochs == 120
        assert schedules == ['CosineAnnealingLR']
        assert 'AutoAugment' not in types
        assert cfg.model.head.loss.type == 'CrossEntropyLoss'
    else:
        assert cfg.train_cfg.max_epochs == 200
        assert schedules == ['LinearLR', 'CosineAnnealingLR']
        assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin == 5
        assert 'AutoAugment' in types
        assert cfg.model.head.loss.type == 'LabelSmoothLoss'
        assert cfg.model.train_cfg.augments.type == 'Mixup'
    init_default_scope(cfg.default_scope)
    for transform in cfg.train_dataloader.dataset.pipeline:
        TRANSFORMS.build(transform)
    with torch.device('meta'):  # names and shapes only
        model = MODELS.build(cfg.model)
    assert model.head.fc.in_features == model.backbone.out_channels[-1]


# a folder per class instead of ImageNet, and sizes for seconds
SMALL = """
_base_ = '{base}'
loader = dict(num_workers=0, persistent_workers=False, batch_size=8)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=32),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='CenterCrop', crop_size=32),
    dict(type='PackInputs'),
]
custom = dict(_delete_=True, type='CustomDataset', data_root='{root}')
train = dict(custom, data_prefix='train', pipeline=train_pipeline)
train_dataloader = dict(dataset=train, **loader)
val = dict(custom, data_prefix='val', pipeline=test_pipeline)
val_dataloader = dict(dataset=val, **loader)
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1,))
test_evaluator = val_evaluator
model = dict(data_preprocessor=dict(num_classes=2), head=dict(num_classes=2, topk=(1,)))
optim_wrapper = dict(optimizer=dict(lr=0.02))
train_cfg = dict(max_epochs=3)
"""


def call(name, *args, cwd):
    command = [sys.executable, str(PROJECT / 'tools' / name), *map(str, args)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_train_fuse_and_test_a_classifier_on_a_folder_per_class(tmp_path):
    """Two classes that differ in brightness: learned in a few steps, fused or not."""
    rng = np.random.default_rng(0)
    for split, count in (('train', 16), ('val', 6)):
        for label, level in (('dark', 60), ('light', 190)):
            folder = tmp_path / 'data' / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(level, 30, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f'{i}.png')
    config = tmp_path / 'two_classes.py'
    config.write_text(SMALL.format(base=CONFIGS / 'repvgg_a0_120e.py', root=tmp_path / 'data'))
    log = call('train.py', config, '--work-dir', 'work', cwd=tmp_path)
    assert 'Evaluating the deployed form: 22 blocks, 17 3x3 convs by Winograd' in log
    trained = tmp_path / 'work' / 'epoch_3.pth'
    log = call('deploy_fuse.py', config, trained, 'fused.pth', cwd=tmp_path)
    assert 'fused: 22 blocks' in log
    assert 'on 2 images: largest difference' in log
    unfused = ['--cfg-options', 'custom_hooks=[]']
    call('test.py', config, trained, '--work-dir', 'a', *unfused, cwd=tmp_path)
    call('test.py', 'fused.py', 'fused.pth', '--work-dir', 'b', cwd=tmp_path)
    scores = []
    for folder in ('a', 'b'):
        (path,) = (tmp_path / folder).glob('*/*.json')
        scores.append(json.loads(path.read_text())['accuracy/top1'])
    assert scores[0] == scores[1] >= 50
