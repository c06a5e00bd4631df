"""What weights are told to be, and the mending command that an error gives."""

import pytest
import torch

from mmseg_repvgg.checkpoint.names import SCHEMES, explain, identify, translate
from mmseg_repvgg.models import ARCHS, DilatedRepVGG


def weights(arch: str, deploy: bool = False, classes: int | None = None) -> dict:
    with torch.device('meta'):
        state = DilatedRepVGG(arch, deploy=deploy).state_dict()
    named = {f'backbone.{name}': tensor for name, tensor in state.items()}
    if classes:
        named['head.fc.weight'] = torch.zeros(classes, 1)
    return named


@pytest.mark.parametrize('arch', ARCHS)
def test_every_architecture_is_known_in_both_forms_and_every_scheme(arch):
    for deploy in (False, True):
        state = weights(arch, deploy, classes=7)
        for scheme in SCHEMES:
            found = identify(translate(state, scheme))
            assert found.scheme == scheme
            assert found.form == ('deploy' if deploy else 'training')
            assert found.arch == arch
            assert found.classes == {'head': 7}


def test_other_weights_are_described():
    r18 = {'layer1.0.conv1.weight': torch.zeros(1), 'decode_head.conv_seg.weight': torch.zeros(5)}
    assert str(identify(r18)) == 'no RepVGG, 5 classes in decode_head'
    arch = dict(num_blocks=(2, 1), width_factor=(0.25, 0.25))
    custom = DilatedRepVGG(arch, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    assert identify(custom.state_dict()).arch == 'with num_blocks=[2, 1], channels=[16, 32]'


@pytest.mark.parametrize(
    ('model', 'found', 'text'),
    [
        (weights('A0'), weights('B1g2'), 'model.backbone.arch=B1g2'),
        (weights('A0'), weights('A0', deploy=True), 'model.backbone.deploy=True'),
        (weights('A0', deploy=True), weights('A0'), 'python tools/deploy_fuse.py'),
        (weights('A0', classes=19), weights('A0', classes=7), 'model.head.num_classes=7'),
        (weights('A0'), {'conv1.weight': torch.zeros(1)}, 'Give weights of a RepVGG'),
        ({'conv1.weight': torch.zeros(1)}, weights('A0'), 'the config that the weights were'),
    ],
)
def test_the_cause_names_its_command(model, found, text):
    said = explain(model, found)
    assert said.startswith(f'Found: {identify(found)}. Expected: {identify(model)}. ')
    assert text in said
