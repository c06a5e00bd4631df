"""Real exported models in a Segmenter give the label maps that mmseg gives with PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config

pytest.importorskip('mmseg_repvgg.deploy.runtimes')
pytest.importorskip('onnxruntime')

PROJECT = Path(__file__).parents[2]
SIZE = (64, 128)  # of the scenes
WHOLE = dict(mode='whole')
SLIDE = dict(mode='slide', crop_size=(49, 70), stride=(33, 40))
HEAVY = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'matplotlib')


def by_pytorch(model, image):
    """The label map of mmseg's own test step; model: a segmentor, image: (H, W, 3) BGR."""
    from mmseg.structures import SegDataSample

    shape = image.shape[:2]
    sample = SegDataSample(metainfo=dict(ori_shape=shape, img_shape=shape, pad_shape=shape))
    inputs = [torch.from_numpy(image.transpose(2, 0, 1).copy())]
    (result,) = model.test_step(dict(inputs=inputs, data_samples=[sample]))
    return result.pred_sem_seg.data[0].numpy()


def exported(segmentor, folder, test_cfg, **options):
    """An ONNX file for a way of testing."""
    from mmseg_repvgg.deploy.export import Options, export

    cfg, _, checkpoint = segmentor
    cfg = Config(cfg.to_dict())
    cfg.model.test_cfg = test_cfg
    return export(cfg, checkpoint, folder / 'm.onnx', options=Options(**options)).path


@pytest.fixture(scope='module')
def whole(segmentor, tmp_path_factory):
    return exported(segmentor, tmp_path_factory.mktemp('whole'), WHOLE, size=SIZE)


def check(segmentor, path, test_cfg, monkeypatch):
    """Compare the label maps of two colourful images with mmseg's."""
    from mmseg_repvgg.deploy.segmenter import Segmenter

    model = segmentor[1]
    monkeypatch.setattr(model, 'test_cfg', Config(test_cfg))
    segmenter = Segmenter(path)
    for seed in range(2):
        patches = np.random.default_rng(seed).integers(0, 256, (4, 8, 3), np.uint8)
        image = patches.repeat(16, 0).repeat(16, 1)
        labels, expected = segmenter(image), by_pytorch(model, image)
        assert labels.shape == SIZE
        assert len(np.unique(expected)) > 2
        assert (labels == expected).mean() > 0.9995  # the network is smooth: it takes few pixels
        # negative control: another channel order changes ten times as many
        assert (segmenter(image[..., ::-1]) == expected).mean() < 0.995


def test_whole_images(segmentor, whole, monkeypatch):
    check(segmentor, whole, WHOLE, monkeypatch)


def test_windows(segmentor, tmp_path, monkeypatch):
    path = exported(segmentor, tmp_path, SLIDE, preprocessing=True, dynamic_batch=True)
    check(segmentor, path, SLIDE, monkeypatch)


@pytest.mark.slow
def test_argmax_inside(segmentor, tmp_path, monkeypatch):
    path = exported(segmentor, tmp_path, WHOLE, size=SIZE, argmax=True)
    check(segmentor, path, WHOLE, monkeypatch)


def test_the_tool_needs_no_pytorch(whole, scenes, tmp_path):
    images = scenes / 'leftImg8bit' / 'val'
    code = f"""
import json, runpy, sys
try:
    runpy.run_path({str(PROJECT / 'tools' / 'predict.py')!r}, run_name='__main__')
except SystemExit as end:
    print(json.dumps([end.code, [name for name in {HEAVY} if name in sys.modules]]))
"""
    done = subprocess.run(
        [sys.executable, '-c', code, whole, images, 'out', '--runtime', 'onnxruntime'],
        env={**os.environ, 'PYTHONPATH': str(PROJECT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert len(list((tmp_path / 'out').rglob('*_overlay.jpg'))) == len(list(images.rglob('*.png')))
