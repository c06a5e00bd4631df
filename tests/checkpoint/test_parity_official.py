"""Weights in the official names give what the paper's equations give, in both forms."""

import pytest
import torch

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.loading import load_backbone
from mmseg_repvgg.models import ARCHS
from tests.checkpoint import official
from tests.checkpoint.parity import TOLERANCE, each, gap, mirror_a_kernel, unfilled


def filled(name, state, **kwargs):
    ours = unfilled(name, **kwargs)
    line = load_backbone(ours, state, 'RepVGG.pth')
    total = len(ours.state_dict())
    scheme = 'repvggplus' if 'stage1.blocks.0' in ''.join(state) else 'official'
    left = f'(names: {scheme}); not loaded: 2 (head.fc.weight, head.fc.bias)'
    assert line == f'{total} of {total} tensors loaded from RepVGG.pth {left}'
    return ours


def test_the_reference_has_every_architecture_of_the_table():
    assert list(official.ROWS) == list(ARCHS)


def test_the_reference_by_its_names_and_sizes():
    """B1g4 as the official code prints it, and features that neither grow nor die out."""
    state = official.random_state('B1g4')
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes['stage0.rbr_dense.conv.weight'] == (64, 3, 3, 3)
    assert shapes['stage1.0.rbr_dense.conv.weight'] == (128, 64, 3, 3)
    assert shapes['stage1.1.rbr_dense.conv.weight'] == (128, 32, 3, 3)  # the 3rd layer
    assert shapes['stage3.15.rbr_1x1.conv.weight'] == (512, 128, 1, 1)  # the 27th
    assert shapes['stage4.0.rbr_dense.bn.running_var'] == (2048,)
    assert shapes['linear.weight'] == (1000, 2048)
    identities = [name for name in shapes if name.endswith('rbr_identity.weight')]
    assert len(identities) == 3 + 5 + 15  # all layers but the stem and each stage's first
    for features in official.features(state, torch.randn(1, 3, 64, 64)):
        assert 0.1 < features.std() < 10


@each(ARCHS)
@torch.no_grad()
def test_both_forms_give_the_feature_maps_of_the_equations(name):
    state = official.random_state(name)
    x = torch.randn(1, 3, 64, 64)
    expected = official.features(state, x)
    ours = filled(name, state)
    assert gap(ours(x), expected) <= TOLERANCE
    deployed = official.fused(state)
    assert gap(official.features(deployed, x), expected) <= TOLERANCE
    fused = filled(name, deployed, deploy=True)
    assert gap(fused(x), expected) <= TOLERANCE
    ours.switch_to_deploy()
    mine, reference = dict(ours.state_dict()), dict(fused.state_dict())
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)  # and by the same names
    assert gap(mirror_a_kernel(fused)(x), expected) > 10 * TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize('name', ['D2se', 'L2pse'])
def test_narrow_models_with_squeeze_excitation(name):
    """As above, at a tenth of the width: all layers of the two models that take long."""
    state = official.random_state(name, narrow=10)
    x = torch.randn(1, 3, 64, 64)
    expected = official.features(state, x)
    row = ARCHS[name]
    widths = tuple(factor / 10 for factor in row.width_factor)
    narrow = dict(num_blocks=row.num_blocks, width_factor=widths, se_cfg=row.se_cfg)
    ours = filled(narrow, state)
    assert gap(ours(x), expected) <= TOLERANCE
    assert gap(filled(narrow, official.fused(state), deploy=True)(x), expected) <= TOLERANCE
    assert gap(mirror_a_kernel(ours)(x), expected) > 10 * TOLERANCE
    other = dict(row.se_cfg, after_act=name == 'D2se')  # negative control: on the other side
    with pytest.raises(CheckpointError, match='does not fit the model'):
        filled(dict(narrow, se_cfg=other), state)


@torch.no_grad()
def test_auxiliary_classifiers_are_left_out():
    """Names of repvggplus.py: conv, BatchNorm and linear layer after stages 1, 2 and 3_first."""
    state = official.random_state('L2pse', narrow=10)
    for stage in ('stage1', 'stage2', 'stage3_first'):
        state[f'{stage}_aux.0.conv.weight'] = torch.ones(16, 16, 3, 3)
        state[f'{stage}_aux.0.bn.weight'] = torch.ones(16)
        state[f'{stage}_aux.3.weight'] = torch.ones(1000, 16)
    widths = tuple(factor / 10 for factor in ARCHS['L2pse'].width_factor)
    narrow = dict(num_blocks=(8, 14, 24, 1), width_factor=widths, se_cfg=ARCHS['L2pse'].se_cfg)
    line = load_backbone(unfilled(narrow), state, 'L2pse.pth')
    # three tensors of each, and two of the classifier
    assert 'not loaded: 11 (' in line and 'stage1_aux.0.conv.weight' in line


@torch.no_grad()
def test_the_comparison_sees_every_kind_of_tensor():
    """Negative control: one tensor of one block made wrong is a difference of its feature map."""
    state = official.random_state('A0')
    x = torch.randn(1, 3, 64, 64)
    expected = official.features(state, x)
    tensors = [name for name in state if name.startswith('stage3.7.')]
    tensors = [name for name in tensors if not name.endswith('num_batches_tracked')]
    assert len(tensors) == 2 * 5 + 4
    for name in tensors:
        ours = filled('A0', {**state, name: state[name].roll(1, 0)})
        assert gap(ours(x), expected) > 10 * TOLERANCE, name
