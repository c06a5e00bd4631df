"""mmpretrain's RepVGG: its weights in our backbone give its feature maps, in both forms."""

import torch
from torch import nn

from mmseg_repvgg.models import ARCHS
from tests.checkpoint.parity import TOLERANCE, as_trained, each, gap, mirror_a_kernel, unfilled
from tests.common import TINY

# as the paper's segmentors use it: output stride 8, the last two stages dilated
SETTINGS = dict(strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4), out_indices=(0, 1, 2, 3))


THEIRS = [name for name in ARCHS if name != 'L2pse']  # tests/checkpoint/test_parity_official.py


def theirs_of(name):
    from mmpretrain.models.backbones.repvgg import RepVGG

    return as_trained(RepVGG(name, **SETTINGS))


def filled(name, state, **kwargs):
    model = unfilled(name, **SETTINGS, **kwargs)
    model.load_state_dict(state, strict=True)
    return model


def test_mmpretrain_has_every_other_architecture_of_the_table():
    from mmpretrain.models.backbones.repvgg import RepVGG

    assert set(THEIRS) <= set(RepVGG.arch_settings)


@each(THEIRS)
@torch.no_grad()
def test_both_forms_give_mmpretrains_feature_maps(name):
    theirs = theirs_of(name)
    x = torch.randn(1, 3, 65, 33)
    expected = theirs(x)
    ours = filled(name, theirs.state_dict())
    assert gap(ours(x), expected) <= TOLERANCE
    assert gap(mirror_a_kernel(ours)(x), expected) > 10 * TOLERANCE
    theirs.switch_to_deploy()
    fused = filled(name, theirs.state_dict(), deploy=True)
    assert gap(fused(x), expected) <= TOLERANCE
    if name == 'D2se':  # see below
        assert gap(theirs(x), expected) > 0.1
    else:
        assert gap(fused(x), theirs(x)) <= TOLERANCE
    assert gap(mirror_a_kernel(fused)(x), expected) > 10 * TOLERANCE


@torch.no_grad()
def test_mmpretrains_fused_form_leaves_the_squeeze_excitation_out():
    """An error there, shown on a small D2se: so D2se is compared to its training form alone."""
    arch = dict(TINY, group_layer_map=None, se_cfg=dict(ratio=4, divisor=1))
    theirs = theirs_of(arch)
    x = torch.randn(1, 3, 65, 33)
    expected = theirs(x)
    theirs.switch_to_deploy()
    assert gap(theirs(x), expected) > 0.1
    fused = filled(arch, theirs.state_dict(), deploy=True)
    assert gap(fused(x), expected) <= TOLERANCE
    for block in fused.modules():
        if hasattr(block, 'se_layer'):
            block.se_layer = nn.Identity()
    assert gap(fused(x), theirs(x)) <= TOLERANCE
