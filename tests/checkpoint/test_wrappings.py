"""Wrapped weights, all the way through ``init_cfg``, from a file to a filled backbone."""

from pathlib import Path

import pytest
import torch
from mmengine.model import PretrainedInit

from mmseg_repvgg.checkpoint.names import translate
from mmseg_repvgg.models import DilatedRepVGG
from tests.checkpoint.parity import NAMES_OF_ALL, unfilled
from tests.checkpoint.wrappings import FORMS, write
from tests.common import TINY, randomise_batchnorms


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('scheme', NAMES_OF_ALL)
def test_pretrained_unwraps_every_form(tmp_path, form, scheme):
    source = randomise_batchnorms(DilatedRepVGG(TINY))
    state = {f'backbone.{name}': tensor for name, tensor in source.state_dict().items()}
    state['head.fc.weight'] = torch.ones(2, 64)
    file = write(form, translate(state, scheme), tmp_path)
    init_cfg = dict(type='Pretrained', checkpoint=str(file), prefix='backbone.')
    model = unfilled(TINY, init_cfg=init_cfg)
    x = torch.randn(1, 3, 64, 64)
    assert model(x)[-1].isnan().all()
    model.init_weights()
    for ours, theirs in zip(model(x), source(x), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
@pytest.mark.parametrize('as_list', [False, True])
@pytest.mark.parametrize('path', [str, Path])
def test_every_way_to_ask_for_pretrained_weights(tmp_path, kind, as_list, path):
    source = randomise_batchnorms(DilatedRepVGG(TINY))
    state = {f'backbone.{name}': tensor for name, tensor in source.state_dict().items()}
    file = write('bare', translate(state, 'official'), tmp_path)
    init_cfg = dict(type=kind, checkpoint=path(file), prefix='backbone.')
    if as_list:
        init_cfg = [dict(type='Kaiming', layer='Conv2d'), init_cfg]
    model = DilatedRepVGG(TINY, init_cfg=init_cfg)
    model.init_weights()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in source.state_dict().items())
