"""mmseg's own ways of using a model serve ours, in training and in fused form alike."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.engine import launch
from tests.common import randomise_batchnorms, runner_cfg


@pytest.fixture(scope='module')
def pairs(scenes, tmp_path_factory):
    """Config and checkpoint of a model in training form and in fused form, as files."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('pairs')
    test_pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs'),
    ]
    views = [
        [dict(type='Resize', scale_factor=ratio, keep_ratio=True) for ratio in (1.0, 1.25)],
        [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
        [dict(type='LoadAnnotations')],
        [dict(type='PackSegInputs')],
    ]
    cfg = runner_cfg(
        scenes,
        folder / 'work',
        custom_imports=dict(imports=['mmseg_repvgg'], allow_failed_imports=False),
        test_pipeline=test_pipeline,
        tta_model=dict(type='SegTTAModel'),
        tta_pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='TestTimeAug', transforms=views),
        ],
    )
    torch.manual_seed(0)  # what runs before each test comes too late for a fixture of the module
    model = randomise_batchnorms(MODELS.build(cfg.model))
    meta = dict(
        dataset_meta=dict(classes=[f'class {i}' for i in range(19)], palette=[[0] * 3] * 19)
    )
    torch.save(dict(meta=meta, state_dict=model.state_dict()), folder / 'train.pth')
    cfg.dump(str(folder / 'train.py'))
    training = (str(folder / 'train.py'), str(folder / 'train.pth'))
    report = fuse_checkpoint(launch.load_config(training[0]), training[1], folder / 'fused.pth')
    return training, (str(report.config), str(report.checkpoint))


@pytest.fixture
def images(scenes):
    return [str(p) for p in sorted((scenes / 'leftImg8bit' / 'val').glob('*/*.png'))]


def agreement(first, second):
    assert len(np.unique(first)) > 1  # or any two would agree
    return (np.asarray(first) == np.asarray(second)).mean()


def test_init_model_and_inference_model(pairs, images):
    from mmseg.apis import inference_model, init_model

    results = []
    for config, checkpoint in pairs:
        model = init_model(config, checkpoint, device='cpu')
        assert model.dataset_meta['classes'][:2] == ['class 0', 'class 1']
        results.append(inference_model(model, images[0]).pred_sem_seg.data.numpy())
    assert results[0].shape == (1, 64, 128)
    assert agreement(*results) > 0.999
    other = init_model(pairs[0][0], None, device='cpu')  # negative control: random weights
    assert agreement(results[0], inference_model(other, images[0]).pred_sem_seg.data) < 0.9


def test_the_inferencer(pairs, images):
    from mmseg.apis import MMSegInferencer

    results = []
    for config, checkpoint in pairs:
        inferencer = MMSegInferencer(model=config, weights=checkpoint, device='cpu')
        results.append(inferencer(images, show=False)['predictions'])
    assert [np.shape(r) for r in results] == [(3, 64, 128)] * 2
    assert agreement(*results) > 0.999


def test_test_time_augmentation(pairs, tmp_path):
    """Two scales and a flip; the training form is fused on the way, or not."""
    (config, checkpoint), (fused_config, fused_checkpoint) = pairs
    plain = launch.load_config(config, dict(custom_hooks=[]))
    runs = [
        (plain, checkpoint),
        (Config.fromfile(config), checkpoint),
        (Config.fromfile(fused_config), fused_checkpoint),
    ]
    runs.append((Config.fromfile(config), checkpoint))
    maps = []
    for i, (cfg, weights) in enumerate(runs):
        out = tmp_path / f'maps{i}'
        launch.test(cfg, weights, work_dir=str(tmp_path / f'work{i}'), out=str(out), tta=i < 3)
        maps.append([cv2.imread(str(p), cv2.IMREAD_GRAYSCALE) for p in sorted(out.glob('*.png'))])
    assert np.shape(maps) == (4, 3, 64, 128)
    assert agreement(maps[0], maps[1]) > 0.999
    assert agreement(maps[0], maps[2]) > 0.999
    assert agreement(maps[0], maps[3]) < 0.999  # negative control: one view is not four


def mmseg_tool(name, *words, cwd):
    """Run a tool that mmseg ships, which knows nothing of this project but the config."""
    import mmseg

    tool = Path(mmseg.__path__[0]) / '.mim' / 'tools' / name
    done = subprocess.run(
        [sys.executable, str(tool), *words], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (scores,) = cwd.glob('test/*/*.json') if name == 'test.py' else [None]
    return scores and json.loads(scores.read_text())


SPAWN = [
    '--cfg-options',
    'env_cfg.mp_cfg.mp_start_method=spawn',
    'train_dataloader.num_workers=1',
    'val_dataloader.num_workers=1',
]


@pytest.mark.parametrize('options', [[], pytest.param(SPAWN, marks=pytest.mark.slow)])
def test_mmsegs_own_tools_train_and_test(pairs, tmp_path, options):
    """Also with processes for the data that start empty, as on Windows."""
    config, _ = pairs[0]
    mmseg_tool('train.py', config, '--work-dir', 'work', *options, cwd=tmp_path)
    trained = tmp_path / 'work' / 'iter_4.pth'
    scores = mmseg_tool('test.py', config, str(trained), '--work-dir', 'test', cwd=tmp_path)
    assert 0 < scores['mIoU'] <= 100


def test_mmsegs_own_tool_tests_the_fused_form_with_augmentation(pairs, tmp_path):
    scores = mmseg_tool('test.py', *pairs[1], '--work-dir', 'test', '--tta', cwd=tmp_path)
    assert 0 < scores['mIoU'] <= 100


def test_mmengine_counts_the_flops(pairs):
    """As mmseg's get_flops.py does, but without ``input_shape``, which mmengine refuses there."""
    from mmengine.analysis import get_model_complexity_info

    found = []
    for config, _ in pairs:
        model = MODELS.build(launch.load_config(config).model)
        model.auxiliary_head = None
        model = revert_sync_batchnorm(model).eval()
        inputs = model.data_preprocessor(dict(inputs=[torch.rand(3, 64, 128)]))['inputs']
        found.append(get_model_complexity_info(model, inputs=inputs, show_arch=False))
        assert found[-1]['params'] == sum(p.numel() for p in model.parameters())
    assert found[0]['flops'] > found[1]['flops'] > 0
