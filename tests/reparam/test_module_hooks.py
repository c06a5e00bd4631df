"""Weights that hooks compute are fused as they are in eval mode; other hooks are not lost."""

import copy

import pytest
import torch
from mmcv.cnn import ConvModule
from torch import nn
from torch.nn.utils import prune

from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.reparam import EquivalenceError, compare, deployed_copy
from mmseg_repvgg.reparam.batchnorm import fuse_batchnorms
from mmseg_repvgg.reparam.branches import fuse_branches
from tests.common import TINY, randomise_batchnorms


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def prune_half(conv):
    prune.l1_unstructured(conv, 'weight', 0.5)


@pytest.mark.parametrize(
    'compute',
    [
        prune_half,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        nn.utils.parametrizations.weight_norm,
    ],
    ids=['pruned', 'spectral', 'spectral parametrization', 'weight norm parametrization'],
)
@pytest.mark.parametrize('training', [False, True])
def test_computed_weights_are_fused_as_they_are(compute, training):
    """After load_state_dict a pruned conv's weight is old until the next call."""
    first, second = pair(), pair()
    for model in (first, second):
        randomise_batchnorms(model)
        compute(model[0])
    for _ in range(3):
        first.train()(torch.randn(1, 4, 2, 2))  # spectral norm learns its vectors
    second.load_state_dict(first.state_dict())
    fused, conv = second.train(training), second[0]
    before = copy.deepcopy(conv.state_dict())
    assert fuse_batchnorms(fused) == 1
    assert 'weight' in dict(fused[0].named_parameters())
    x = torch.randn(1, 4, 3, 3)
    assert compare(first, fused, x).max_rel < 1e-5
    assert all(torch.equal(before[n], t) for n, t in conv.state_dict().items())


def test_spectral_norm_of_mmcvs_conv_module():
    model = ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), with_spectral_norm=True)
    randomise_batchnorms(model)
    with torch.no_grad():
        model.conv.weight_orig.mul_(3)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': 1}
    assert compare(model, fused, torch.randn(1, 4, 5, 5)).max_rel < 1e-5


@pytest.mark.parametrize('compute', [prune_half, nn.utils.spectral_norm])
def test_blocks_with_computed_weights(compute):
    blocks = [randomise_batchnorms(RepVGGBlock(8, 8), seed) for seed in (0, 1)]
    for block in blocks:
        compute(block.branch_3x3.conv)
        compute(block.branch_1x1.conv)
    first, second = blocks
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 8, 9, 9)
    first.train()(x).sum().backward()  # the computed weight has a graph now
    fused, counts = deployed_copy(first, ['branches'])
    assert counts == {'branches': 1}
    assert compare(first, fused, x).max_rel < 1e-5
    if compute is prune_half:  # spectral norm has learnt in the meantime
        second.branch_3x3.norm.load_state_dict(first.branch_3x3.norm.state_dict())
        second.branch_1x1.norm.load_state_dict(first.branch_1x1.norm.state_dict())
        second.branch_norm.load_state_dict(first.branch_norm.state_dict())
        second.switch_to_deploy()
        assert compare(first, second, x).max_rel < 1e-5


def test_hooks_that_watch_do_not_keep_a_block_from_fusing():
    model = randomise_batchnorms(DilatedRepVGG(TINY))
    seen = []
    model.stage_2[1].branch_3x3.conv.register_forward_hook(lambda *call: seen.append(call))
    model.stage_2[1].act.register_forward_hook(lambda *call: seen.append('act'))
    fused, counts = deployed_copy(model, ['branches'])
    assert counts == {'branches': 10}
    assert fused.deploy
    seen.clear()
    assert compare(model, fused, torch.randn(1, 3, 65, 65)).max_rel < 1e-4
    assert seen.count('act') == 2


class Lora(nn.Module):
    """Replaces a conv, whose weight it still shows, and adds to what it computes."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv
        self.added = nn.Conv2d(conv.in_channels, conv.out_channels, 1)
        self.weight = conv.weight
        for name in ('in_channels', 'out_channels', 'kernel_size', 'stride', 'padding'):
            setattr(self, name, getattr(conv, name))
        self.dilation, self.groups, self.padding_mode = conv.dilation, conv.groups, 'zeros'

    def forward(self, x):
        return self.conv(x) + self.added(x)


def add_one(module, inputs, output):
    return output + 1


@pytest.mark.parametrize('change', ['hook', 'lora'])
def test_what_changes_the_output_of_a_branch_is_not_lost_in_silence(change):
    model = randomise_batchnorms(DilatedRepVGG(TINY))
    branch = model.stage_2[1].branch_3x3
    if change == 'hook':
        branch.conv.register_forward_hook(add_one)
    else:
        branch.conv = Lora(branch.conv)
    modules = list(model.modules())
    text = r"RepVGGBlock.switch_to_deploy\(\) of 'stage_2.1' changes the outputs of the block"
    with pytest.raises(EquivalenceError, match=text):
        fuse_branches(model)
    assert list(model.modules()) == modules
