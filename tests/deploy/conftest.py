"""A tiny trained segmentor, shared by the tests of exporting and of exported models."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from tests.common import randomise_batchnorms, runner_cfg

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def fit_classifier(model, scenes):
    """Fit the last conv to the training scenes by least squares: random features, sane classes."""
    conv, seen, wanted = model.decode_head.conv_seg, [], []
    handle = conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for path in sorted((scenes / 'leftImg8bit' / 'train').glob('*/*.png')):
        pixels = torch.from_numpy(cv2.imread(str(path)).transpose(2, 0, 1).copy())
        with torch.no_grad():
            model(model.data_preprocessor(dict(inputs=[pixels]))['inputs'], mode='tensor')
        name = path.name.replace('_leftImg8bit', '_gtFine_labelTrainIds')
        labels = cv2.imread(str(scenes / 'gtFine' / 'train' / path.parent.name / name), -1)
        size = seen[-1].shape[-1], seen[-1].shape[-2]
        wanted.append(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST_EXACT))
    handle.remove()
    features = torch.cat([maps[0].flatten(1) for maps in seen], dim=1).T.double()
    labels = torch.from_numpy(np.stack(wanted)).flatten().long()
    known = labels != 255
    ones = torch.ones_like(features[:, :1])
    targets = torch.nn.functional.one_hot(labels[known], 19).double()
    found = torch.linalg.lstsq(torch.cat([features, ones], dim=1)[known], targets).solution
    conv.weight.data.copy_(found[:-1].T[:, :, None, None])
    conv.bias.data.copy_(found[-1])


@pytest.fixture(scope='session')
def segmentor(scenes, tmp_path_factory):
    """A config with normalisation, its model with trained statistics, and the checkpoint file."""
    folder = tmp_path_factory.mktemp('segmentor')
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, folder / 'work')
    cfg.model.data_preprocessor = dict(
        type='SegDataPreProcessor', mean=MEAN, std=STD, bgr_to_rgb=True, size=(64, 64)
    )
    torch.manual_seed(0)
    model = randomise_batchnorms(MODELS.build(cfg.model))
    fit_classifier(model, scenes)
    torch.save(dict(state_dict=model.state_dict()), folder / 'trained.pth')
    return cfg, model, folder / 'trained.pth'
