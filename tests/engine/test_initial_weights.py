"""ImageNet weights in a config: training downloads them once, and nothing else needs them."""

import hashlib
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import torch

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.engine import launch
from mmseg_repvgg.models import DilatedRepVGG
from tests.common import TINY, runner_cfg

TRAIN = Path(__file__).parents[2] / 'tools' / 'train.py'


def serve_weights(folder):
    """A file of random weights, with its hash in the name; returns the name."""
    torch.save(DilatedRepVGG(TINY).state_dict(), folder / 'tiny.pth')
    digest = hashlib.sha256((folder / 'tiny.pth').read_bytes()).hexdigest()
    return (folder / 'tiny.pth').rename(folder / f'tiny-{digest[:8]}.pth').name


@pytest.mark.slow
def test_only_a_new_training_needs_them(scenes, tmp_path, web):
    folder, url, requests = web
    source = f'{url}/{serve_weights(folder)}'

    def cfg(name, max_iters):
        changes = dict(log_level='INFO', experiment_name=f'{tmp_path}{name}')
        made = runner_cfg(scenes, tmp_path / 'work', max_iters, 100, **changes)
        made.model.pretrained = source
        return made

    launch.train(cfg('first', 2))
    assert len(requests) == 1
    (log,) = (tmp_path / 'work').glob('*/*.log')
    count = len(DilatedRepVGG(TINY).state_dict())
    assert f'{count} of {count} tensors loaded from {source}' in log.read_text()
    folder.joinpath(Path(source).name).unlink()
    shutil.rmtree(tmp_path / 'cache')
    launch.train(cfg('resumed', 4), resume=True)
    trained = str(tmp_path / 'work' / 'iter_4.pth')
    assert 'mIoU' in launch.test(cfg('tested', 4), trained)
    report = fuse_checkpoint(cfg('fused', 4), trained, tmp_path / 'fused.pth', num_images=0)
    assert 'pretrained' not in report.config.read_text()
    assert len(requests) == 1
    with pytest.raises(CheckpointError, match='could not be downloaded: .*404'):
        launch.train(cfg('again', 4), str(tmp_path / 'again'))


def test_a_host_that_cannot_be_reached_is_one_line_with_two_ways_on(
    scenes, tmp_path, web, monkeypatch
):
    source = 'http://127.0.0.1:1/tiny-0a0a0a0b.pth'
    cfg = runner_cfg(scenes, tmp_path / 'work', experiment_name=source)
    cfg.model.pretrained = source
    cfg.dump(str(tmp_path / 'config.py'))
    monkeypatch.setattr(sys, 'argv', [str(TRAIN), str(tmp_path / 'config.py')])
    with pytest.raises(SystemExit) as error:
        runpy.run_path(str(TRAIN), run_name='__main__')
    text = str(error.value)
    assert text.startswith(f'train: error: {source} could not be downloaded: ')
    assert 'model.pretrained=PATH' in text and 'model.pretrained=None' in text
    assert '\n' not in text
