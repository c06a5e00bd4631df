"""timm's RepVGG: its weights in our backbone give its feature maps, in both forms."""

import pytest
import torch

from mmseg_repvgg.checkpoint.loading import load_backbone
from mmseg_repvgg.models import ARCHS
from tests.checkpoint.parity import TOLERANCE, as_trained, each, gap, mirror_a_kernel, unfilled

NAMES = ('A0', 'A1', 'A2', 'B0', 'B1', 'B1g4', 'B2', 'B2g4', 'B3', 'B3g4', 'D2se')


def features(model, x):
    """The feature maps after every stage."""
    maps, x = [], model.stem(x)
    for stage in model.stages:
        x = stage(x)
        maps.append(x)
    return maps


def filled(name, theirs, **kwargs):
    ours = unfilled(name, **kwargs)
    line = load_backbone(ours, theirs.state_dict(), 'timm.pth')
    total = len(ours.state_dict())
    # left is timm's classifier, its weight and its bias
    assert line.startswith(
        f'{total} of {total} tensors loaded from timm.pth (names: timm); not loaded: 2'
    )
    return ours


def test_these_are_all_that_both_have():
    timm = pytest.importorskip('timm')
    assert sorted(timm.list_models('repvgg*')) == sorted(f'repvgg_{n.lower()}' for n in NAMES)
    assert set(NAMES) <= set(ARCHS)


@each(NAMES)
@torch.no_grad()
def test_both_forms_give_timms_feature_maps(name):
    timm = pytest.importorskip('timm')
    from timm.utils.model import reparameterize_model

    theirs = as_trained(timm.create_model(f'repvgg_{name.lower()}'))
    x = torch.randn(1, 3, 64, 64)
    expected = features(theirs, x)
    ours = filled(name, theirs)
    assert gap(ours(x), expected) <= TOLERANCE
    assert gap(mirror_a_kernel(ours)(x), expected) > 10 * TOLERANCE
    theirs = reparameterize_model(theirs)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in theirs.modules())
    fused = filled(name, theirs, deploy=True)
    assert gap(fused(x), features(theirs, x)) <= TOLERANCE
    assert gap(fused(x), expected) <= TOLERANCE
    assert gap(mirror_a_kernel(fused)(x), expected) > 10 * TOLERANCE
