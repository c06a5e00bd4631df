"""The demo's own parts; `make demo` itself runs for minutes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmseg_repvgg.demo import (
    CONFIG,
    WORK_DIR,
    draw_strip,
    format_summary,
    newest_metrics,
    run_demo,
)
from mmseg_repvgg.shipped_files import config_path

SUMMARY = dict(
    training_seconds=366.0,
    classes=['road', 'sky'],
    unfused=dict(mIoU=64.21, aAcc=85.3),
    fused=dict(mIoU=64.21, aAcc=85.3),
    unfused_ms=400.0,
    fused_ms=250.0,
    speedup=1.6,
    threads=2,
    fused_checkpoint='f.pth',
    strip='s.png',
)


def test_the_strip_shows_image_truth_and_prediction_side_by_side(scenes, tmp_path):
    for truth in (scenes / 'gtFine' / 'val').glob('*/*_gtFine_labelTrainIds.png'):
        name = truth.name.replace('_gtFine_labelTrainIds', '_leftImg8bit')
        shutil.copy(truth, tmp_path / name)
    draw_strip(scenes, tmp_path, tmp_path / 'strip.png', count=2)
    strip = np.array(Image.open(tmp_path / 'strip.png'))
    assert strip.shape == (2 * 64, 3 * 128, 3)
    image, truth, prediction = np.split(strip, 3, axis=1)
    assert np.array_equal(truth, prediction)
    first = sorted((scenes / 'leftImg8bit' / 'val').glob('*/*.png'))[0]
    assert np.array_equal(image[:64], np.array(Image.open(first)))
    assert (truth == (128, 64, 128)).all(2).mean() > 0.05  # Cityscapes' colour of the road


def test_the_newest_metrics_are_read(tmp_path):
    for day, value in (('20260102_000000', 2), ('20260101_000000', 1)):
        (tmp_path / day).mkdir()
        (tmp_path / day / f'{day}.json').write_text(json.dumps(dict(mIoU=value)))
    assert newest_metrics(tmp_path) == dict(mIoU=2)
    with pytest.raises(FileNotFoundError, match='holds no metrics'):
        newest_metrics(tmp_path / 'empty')


def test_a_second_run_only_shows_the_summary(tmp_path, capsys):
    (tmp_path / 'summary.json').write_text(json.dumps(SUMMARY))
    assert run_demo(tmp_path) == SUMMARY
    shown = capsys.readouterr().out
    assert shown.strip() == format_summary(SUMMARY).strip()
    assert 'trained in 6.1 min' in shown
    assert shown.count('mIoU 0.6421') == 2
    assert 'fused is 1.60 times as fast (2 threads)' in shown


def test_the_training_with_rounding_goes_on_from_the_demo():
    """Its config names what ``mmseg-repvgg demo`` writes without ``--work-dir``."""
    cfg = Config.fromfile(config_path('demo_pspnet_repvgg_a0_qat.py'))
    demo = Config.fromfile(config_path(CONFIG))
    assert Path(cfg.load_from) == WORK_DIR / 'train' / f'iter_{demo.max_iters}.pth'
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert Path(loader.dataset.data_root) == WORK_DIR / 'scenes'
        assert loader.dataset.pipeline
