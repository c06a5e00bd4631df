"""A tiny trained segmentor, shared by the tests of exporting and of exported models."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from tests.common import randomise_batchnorms, runner_cfg

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@pytest.fixture(scope='session')
def segmentor(scenes, tmp_path_factory):
    """A config with normalisation, its model with trained statistics, and the checkpoint file."""
    folder = tmp_path_factory.mktemp('segmentor')
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, folder / 'work')
    cfg.model.data_preprocessor = dict(
        type='SegDataPreProcessor', mean=MEAN, std=STD, bgr_to_rgb=True, size=(64, 64)
    )
    torch.manual_seed(2)  # a network that is right at more pixels than most random ones
    model = randomise_batchnorms(MODELS.build(cfg.model))
    model.decode_head.conv_seg.weight.data.normal_()  # classes that differ
    torch.save(dict(state_dict=model.state_dict()), folder / 'trained.pth')
    return cfg, model, folder / 'trained.pth'
