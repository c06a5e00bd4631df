"""The console shows a few short lines of a training and a test; the log file has everything."""

import logging
import re

import cv2
import numpy as np
import pytest

from mmseg_repvgg.engine import launch
from mmseg_repvgg.engine.console import ShortFormatter, is_shown
from mmseg_repvgg.engine.pictures import PictureBackend
from tests.common import runner_cfg

TABLES = ('System environment', 'Config:', 'Hooks will be executed')


def test_console_log_file_and_pictures(scenes, tmp_path, capsys):
    def cfg(name):
        changes = dict(log_level='INFO', experiment_name=f'{tmp_path}{name}')
        made = runner_cfg(scenes, tmp_path / name, 2, **changes)
        made.default_hooks.visualization = dict(type='SegVisualizationHook')
        made.visualizer.name += name  # a process keeps one per name
        return made

    launch.train(cfg('train'))
    shown = capsys.readouterr().out
    assert not [text for text in (*TABLES, 'decode.loss_ce') if text in shown]
    assert 'model   EncoderDecoder (DilatedRepVGG, PSPHead, FCNHead), ' in shown
    assert 'data    6 images for training, in batches of 2; 3 images for validation' in shown
    assert 'length  2 iterations; validation every 2 iterations' in shown
    assert re.search(r'Iter\(train\) \[2/2\] .*loss: \d', shown)
    assert re.search(r'Iter\(val\) \[3/3\] .*mIoU: \d', shown)
    (log,) = (tmp_path / 'train').glob('*/*.log')
    for text in (*TABLES, 'decode.loss_ce', shown.splitlines()[-1].split(' ', 1)[1]):
        assert text in log.read_text()

    checkpoint, pictures = str(tmp_path / 'train' / 'iter_2.pth'), tmp_path / 'pictures'
    launch.test(cfg('test'), checkpoint, show_dir=str(pictures), verbose=True)
    assert all(text in capsys.readouterr().out for text in TABLES[:1])
    images = (scenes / 'leftImg8bit' / 'val').glob('*/*.png')
    assert sorted(p.name for p in pictures.iterdir()) == sorted(p.name for p in images)
    assert not list((tmp_path / 'test').rglob('*.png'))


def test_pictures_do_not_replace_data(scenes, tmp_path):
    folder = scenes / 'leftImg8bit' / 'val' / 'new'
    for option in ('show_dir', 'out'):
        with pytest.raises(ValueError, match=r'(--show-dir|--out) .* would overwrite data'):
            cfg = runner_cfg(scenes, tmp_path, default_hooks=dict(visualization={}))
            launch.test(cfg, None, **{option: str(folder)})
        assert not folder.exists()


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        (
            'Iter(train) [ 50/7440]  base_lr: 1.0e-02 lr: 1.0e-02  eta: 1 day, 0:01:27  time: 4.5  '
            'data_time: 0.1  memory: 900  loss: 3.3  decode.loss_ce: 2.4  aux.acc_seg: 7.1',
            'Iter(train) [ 50/7440]  eta: 1 day, 0:01:27  memory: 900  loss: 3.3  ',
        ),
        (
            'Epoch(val) [3][50/50]    accuracy/top1: 9.0000  data_time: 0.1  time: 2.0',
            'Epoch(val) [3][50/50]    accuracy/top1: 9.0000  ',
        ),
        (
            'Iter(test) [100/101]    eta: 0:00:04  time: 4.7',
            'Iter(test) [100/101]    eta: 0:00:04  ',
        ),
        ('Iter(test) [ 99/101]    eta: 0:00:04  time: 4.7', None),
        ('paramwise_options -- decode_head.bn.bias:lr=0.1', None),
        ('time: 4.7', 'time: 4.7'),
    ],
)
def test_lines(text, expected):
    record = logging.LogRecord('mmengine', logging.INFO, '', 1, text, None, None)
    assert is_shown(record) == (expected is not None)
    if expected is not None:
        assert ShortFormatter('%(message)s').format(record) == expected
    assert record.getMessage() == text


def test_tensorboard_is_added_once_and_needs_its_package(scenes, tmp_path, monkeypatch):
    cfg = runner_cfg(scenes, tmp_path)
    monkeypatch.setattr(launch, 'find_spec', lambda name: name)
    for _ in range(2):
        launch._add_tensorboard(cfg)
        kinds = [backend.type for backend in cfg.visualizer.vis_backends]
        assert kinds == ['LocalVisBackend', 'TensorboardVisBackend']
    monkeypatch.setattr(launch, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='--tensorboard needs .*: pip install tensorboard'):
        launch.train(runner_cfg(scenes, tmp_path), tensorboard=True)


def test_pictures_of_one_name_are_all_kept(tmp_path):
    pictures = PictureBackend(str(tmp_path))
    for value, name in enumerate(('test_a.jpg', 'test_a.png', 'test_b.png')):
        pictures.add_image(name, np.full((2, 2, 3), value, np.uint8))
    found = {file.name: int(cv2.imread(str(file)).max()) for file in tmp_path.iterdir()}
    assert found == {'a.png': 0, 'a_2.png': 1, 'b.png': 2}
