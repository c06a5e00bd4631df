"""The estimate of training memory: by hand, and beside what PyTorch's allocator gives."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mmseg_repvgg.analysis.memory import _saved_bytes, estimate, measure, training_input
from mmseg_repvgg.engine.launch import load_config
from tests.common import TINY, segmentor_cfg

PROJECT = Path(__file__).parents[2]
DEMO = PROJECT / 'configs' / 'demo_pspnet_repvgg_a0.py'
SGD = dict(optimizer=dict(type='SGD', lr=0.01, momentum=0.9))


def config(**model):
    cfg = Config(dict(model=segmentor_cfg(TINY, (8, 8, 16, 32, 64)), optim_wrapper=SGD))
    cfg.merge_from_dict({f'model.{key}': value for key, value in model.items()})
    return cfg


def test_saved_bytes_by_hand():
    layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    with _saved_bytes(layers) as saved:
        layers(torch.zeros(2, 3, 16, 16))
        # the image; the conv's output for the norm, its mean and deviation; the ReLU's output
        assert saved() == 4 * (2 * 3 * 256 + 2 * 8 * 256 + 2 * 8 + 2 * 8 * 256)


def test_parts_by_hand():
    found = estimate(config(), 2, (64, 64))
    assert found.optimizer == found.gradients  # the momentum
    assert found.parameters > found.gradients  # running means and variances are no parameters
    assert found.peak > found.parameters + found.optimizer + found.saved
    cfg = config()
    cfg.optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
    counters = estimate(cfg, 2, (64, 64)).optimizer - 2 * found.gradients
    assert 0 < counters < 4 * 200  # two moments a number, and a step counter a tensor


def test_what_is_saved_grows_with_the_pixels_and_falls_with_recomputation():
    small, large = (estimate(config(), 2, (side, side)) for side in (64, 128))
    assert large.saved == pytest.approx(4 * small.saved, rel=0.05)
    again = estimate(config(**{'backbone.with_cp': True}), 2, (128, 128))
    assert again.saved < 0.9 * large.saved
    assert again.peak < large.peak
    assert again.gradients == large.gradients


@pytest.mark.slow
@pytest.mark.parametrize('with_cp', [False, True])
def test_the_peak_is_what_the_allocator_gives(with_cp):
    cfg = load_config(DEMO, {'model.backbone.with_cp': with_cp})
    measured = measure(cfg, 2, (97, 129))
    # workspaces of convolutions, which are not included, take up to 12 % on a CPU without AVX-512
    assert 0.95 < measured / estimate(cfg, 2, (97, 129)).peak < 1.15
    # negative control: a batch whose activations outweigh the optimizer is told apart
    assert measured / estimate(cfg, 16, (97, 129)).peak < 0.8


@pytest.mark.parametrize('thresh', [0.7, pytest.param(None, marks=pytest.mark.slow)])
def test_pixels_that_a_loss_chooses_by_value_are_all_chosen(thresh):
    """As those of images and labels that are 0, on which the real steps run."""
    sampler = dict(type='OHEMPixelSampler', thresh=thresh, min_kept=10**6)
    cfg, plain = config(**{'decode_head.sampler': sampler}), estimate(config(), 2, (128, 128))
    found = estimate(cfg, 2, (128, 128))
    assert found.peak >= plain.peak
    assert found.peak == pytest.approx(measure(cfg, 2, (128, 128)), rel=0.05)


def test_the_mean_over_the_labelled_pixels():
    """mmseg counts void in Python; the count changes no memory."""
    mean = dict(type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True)
    plain, found = (
        estimate(config(**{'decode_head.loss_decode': loss}), 2, (64, 64))
        for loss in (dict(mean, avg_non_ignore=False), mean)
    )
    assert found.peak == pytest.approx(plain.peak, rel=0.01)
    assert found.saved == pytest.approx(plain.saved, rel=0.01)


class LossOfCounted(nn.Module):
    """Of as many pixels as there are of class 0."""

    loss_name = 'loss_counted'

    def forward(self, scores, labels, **_options):
        return scores.flatten()[: int((labels == 0).sum())].square().mean()


def test_losses_of_a_counted_number_of_pixels_are_refused():
    MODELS.register_module(module=LossOfCounted, force=True)
    with pytest.raises(ValueError, match='does not run without values'):
        estimate(config(**{'decode_head.loss_decode': dict(type='LossOfCounted')}), 2, (64, 64))


def test_losses_that_loop_over_the_classes_in_the_labels_are_refused():
    loss = dict(type='LovaszLoss', loss_weight=1.0, reduction='none')
    with pytest.raises(ValueError, match='does not run without values'):
        estimate(config(**{'decode_head.loss_decode': loss}), 2, (64, 64))


@pytest.mark.slow
def test_a_classifier():
    cfg = load_config(PROJECT / 'configs' / 'imagenet' / 'repvgg_a0_120e.py')
    assert training_input(cfg) == (32, (224, 224))
    found = estimate(cfg, 4, (96, 96))
    assert found.optimizer == found.gradients
    assert found.peak == pytest.approx(measure(cfg, 4, (96, 96)), rel=0.05)


@pytest.mark.slow
def test_images_of_other_channels():
    four = estimate(config(**{'backbone.in_channels': 4}), 2, (64, 64))
    more = four.saved - estimate(config(), 2, (64, 64)).saved
    assert more == 4 * 2 * 64 * 64  # a float for each pixel of the fourth channel


def test_the_input_of_a_training_is_the_configs_or_the_users():
    cfg = load_config(DEMO)
    assert training_input(cfg) == (4, (193, 193))
    assert training_input(cfg, 3, [65, 97]) == (3, (65, 97))
    cfg.model.data_preprocessor.pop('size')
    assert training_input(cfg)[1] == (193, 193)  # of its RandomCrop
    cfg.pop('train_dataloader')
    with pytest.raises(ValueError, match=r'demo_pspnet_repvgg_a0\.py does not .*: give --batch'):
        training_input(cfg)
    with pytest.raises(ValueError, match='give --crop'):
        training_input(cfg, 1)
    with pytest.raises(ValueError, match='batch=0 must be an integer, at least 1'):
        training_input(cfg, 0, (64, 64))
    with pytest.raises(ValueError, match='has no model'):
        training_input(Config(dict()))


@pytest.mark.parametrize(('batch', 'size'), [(0, (64, 64)), (2, (64, -1))])
def test_wrong_sizes(batch, size):
    with pytest.raises(ValueError, match='batch|size'):
        estimate(config(), batch, size)


@pytest.mark.slow
def test_the_tool(monkeypatch, capsys):
    tool = PROJECT / 'tools' / 'estimate_memory.py'
    words = [str(DEMO), '--crop', '65', '97', '--cfg-options', 'model.backbone.with_cp=True']
    monkeypatch.setattr(sys, 'argv', [str(tool), *words])
    runpy.run_path(str(tool), run_name='__main__')
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == 'batch 4, crops of 65x97, float32, per device'  # the demo's batch
    assert [line.split()[0] for line in lines[1:]] == [
        'parameters', 'gradients', 'optimizer', 'saved', 'peak',
    ]  # fmt: skip
