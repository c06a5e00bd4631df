"""The conv of a fused block does its ReLU, unless that could be noticed."""

import copy

import pytest
import torch
from torch import nn
from torch.export import Dim

from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import deployed_copy
from tests.accel.by_winograd import ROUNDING, gap, needs_nnpack, use
from tests.common import TINY, randomise_batchnorms

pytestmark = needs_nnpack


def backbone():
    torch.manual_seed(0)
    model = randomise_batchnorms(DilatedRepVGG(TINY))
    fused, _ = deployed_copy(model, ['branches'])
    return fused, torch.randn(1, 3, 130, 130)


def test_the_conv_does_it():
    fused, x = backbone()
    fast = use(copy.deepcopy(fused))
    block = fast.stage_1[1]
    assert block.branch_reparam.relu and type(block.act) is nn.Identity
    assert not fast.stem.branch_reparam.__dict__.get('relu')  # stride 2
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            assert gap(fast(x)[-1], fused(x)[-1]) < ROUNDING


@pytest.mark.parametrize('where', ['act', 'branch_reparam', 'se_layer'])
def test_hooks_see_what_they_saw(where):
    fused, x = backbone()
    seen = []
    for module in (m for b in fused.stage_1 for n, m in b.named_children() if n == where):
        module.register_forward_hook(lambda _, args, out: seen.append(out.clone()))
    with torch.no_grad():
        fused(x)
        use(fused)(x)
    assert len(seen) == 4
    assert gap(seen[2], seen[0]) < ROUNDING and gap(seen[3], seen[1]) < ROUNDING
    assert (where == 'act') == (seen[2].min() >= 0)


def test_a_graph_for_all_sizes_has_it():
    torch.manual_seed(0)
    model = randomise_batchnorms(DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)))
    fused, _ = deployed_copy(model, ['branches', 'dilation'])
    fast = use(copy.deepcopy(fused))
    dilated = fast.stage_4[-1].branch_reparam
    assert dilated.sub_map_step == 4 and dilated.relu
    sides = ({2: Dim('height', min=16), 3: Dim('width', min=16)},)
    x = torch.randn(1, 3, 40, 56)
    program = torch.export.export(fast, (x,), dynamic_shapes=sides, strict=False).module()
    x = torch.randn(1, 3, 130, 70)
    with torch.no_grad():
        assert gap(program(x)[-1], fused(x)[-1]) < ROUNDING


@pytest.mark.parametrize('act', [nn.LeakyReLU(), nn.ReLU6(), nn.Identity()])
def test_other_activations_stay(act):
    fused, x = backbone()
    fused.stage_1[1].act = act
    fast = use(copy.deepcopy(fused))
    assert type(fast.stage_1[1].act) is type(act)
    with torch.no_grad():
        assert gap(fast(x)[-1], fused(x)[-1]) < ROUNDING


def test_a_conv_of_two_blocks_keeps_it_apart():
    fused, x = backbone()
    stage = fused.stage_3
    stage[2].branch_reparam, stage[2].act = stage[1].branch_reparam, nn.Identity()
    fast = use(copy.deepcopy(fused))
    assert type(fast.stage_3[1].act) is nn.ReLU
    with torch.no_grad():
        assert gap(fast(x)[-1], fused(x)[-1]) < ROUNDING
