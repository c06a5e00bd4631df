"""Training weights on their way into fused models."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.loading import load_backbone, load_strictly
from mmseg_repvgg.checkpoint.names import translate
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.models.deployed import deployed_config
from mmseg_repvgg.reparam import REWRITES, compare
from tests.checkpoint.parity import NAMES_OF_ALL, WITH_SE
from tests.common import TINY, randomise_batchnorms, segmentor_cfg

SETTINGS = dict(strides=(2, 2, 1, 1), dilations=(1, 1, (1, 2, 3), 4), norm_cfg=dict(type='SyncBN'))


def segmentor(**changes):
    init_default_scope('mmseg')
    return segmentor_cfg(TINY, (8, 8, 16, 32, 64)) | changes


WITH_SQUEEZE = dict(TINY, se_cfg=dict(ratio=2, divisor=1))


@pytest.mark.parametrize(
    ('scheme', 'arch'),
    [(scheme, TINY) for scheme in NAMES_OF_ALL] + [(scheme, WITH_SQUEEZE) for scheme in WITH_SE],
)
def test_a_backbone_built_fused_fuses_what_it_loads(scheme, arch):
    trained = randomise_batchnorms(DilatedRepVGG(arch, **SETTINGS))
    named = {f'backbone.{name}': value for name, value in trained.state_dict().items()}
    fused = DilatedRepVGG(arch, deploy=True, **SETTINGS).eval()
    x = torch.randn(1, 3, 41, 56)
    assert compare(trained, fused, x).max_rel > 1e-2  # negative control: not the same before
    line = load_backbone(fused, translate(named, scheme), 'a.pth')
    assert line.startswith('20 of 20 tensors' if arch is TINY else '60 of 60 tensors')
    assert compare(trained, fused, x).max_rel < 1e-5


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_not_rounded_again(dtype):
    trained = randomise_batchnorms(DilatedRepVGG(TINY, **SETTINGS))
    state = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in trained.state_dict().items()
    }
    load_backbone(trained, state, 'a.pth')
    trained.switch_to_deploy()
    fused = DilatedRepVGG(TINY, deploy=True, **SETTINGS)
    load_backbone(fused, state, 'a.pth')
    for name, value in trained.state_dict().items():
        found = fused.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.allclose(found, value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('rewrites', [['branches'], list(REWRITES)])
@pytest.mark.parametrize('way', ['torch', 'mmengine', 'ours', 'copy'])
def test_a_deployed_segmentor_fuses_what_it_loads(tmp_path, rewrites, way):
    trained = randomise_batchnorms(MODELS.build(segmentor()))
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    deployed = MODELS.build(deployed_config(segmentor(), 'mmseg', rewrites))
    if way == 'torch':
        deployed.load_state_dict(state)
    elif way == 'mmengine':
        torch.save(dict(state_dict=state), tmp_path / 'a.pth')
        load_checkpoint(deployed, str(tmp_path / 'a.pth'), strict=True)
    elif way == 'ours':
        load_strictly(deployed, state, 'a.pth')
    else:  # a deep copy takes its weights itself, not into the first
        first, deployed = deployed, copy.deepcopy(deployed)
        deployed.load_state_dict(state)
        assert compare(trained, first, torch.randn(1, 3, 41, 56)).max_rel > 1e-2
    assert set(state) == set(trained.state_dict())  # the caller's dict stays
    assert compare(trained, deployed, torch.randn(1, 3, 41, 56)).max_rel < 1e-5
    again = {name: value.clone() for name, value in deployed.state_dict().items()}
    deployed.load_state_dict(again)  # its own form as before
    assert all(torch.equal(value, again[name]) for name, value in deployed.state_dict().items())


@pytest.mark.parametrize('block', ['identity_without_bn', 'post_addition_bn', 'diracnet', 'acb'])
def test_a_variant_built_fused_fuses_what_it_loads(block):
    trained = randomise_batchnorms(DilatedRepVGG(TINY, block=block, **SETTINGS))
    fused = DilatedRepVGG(TINY, block=block, deploy=True, **SETTINGS).eval()
    fused.load_state_dict(trained.state_dict())
    assert compare(trained, fused, torch.randn(1, 3, 41, 56)).max_rel < 1e-5


def test_a_fused_backbone_in_a_training_segmentor():
    cfg = segmentor()
    trained = randomise_batchnorms(MODELS.build(cfg))
    cfg = copy.deepcopy(cfg)
    cfg['backbone']['deploy'] = True
    inside = nn.ModuleDict(dict(student=MODELS.build(cfg)))  # below a prefix
    load_strictly(
        inside, {f'student.{name}': value for name, value in trained.state_dict().items()}, 'a.pth'
    )
    inside.eval()
    assert compare(trained, inside['student'], torch.randn(1, 3, 41, 56)).max_rel < 1e-5


def test_weights_of_another_model_are_refused_as_ever():
    deployed = MODELS.build(deployed_config(segmentor(), 'mmseg', ['branches']))
    wide = segmentor_cfg(dict(TINY, width_factor=(0.25,) * 4), (16, 16, 32, 64, 128))
    with pytest.raises(CheckpointError, match='Expected: RepVGG with num_blocks'):
        load_strictly(deployed, MODELS.build(wide).state_dict(), 'wide.pth')
    state = MODELS.build(segmentor()).state_dict()
    state.pop('decode_head.conv_seg.bias')
    with pytest.raises(RuntimeError, match='decode_head.conv_seg.bias'):
        deployed.load_state_dict(state)
