"""Weights in the names of super-gradients and of QARepVGG's code give what their equations give.

The names and equations are those of super-gradients' RepVGGBlock and QARepVGGBlock and of
github.com/cxxgtxy/QARepVGG (QARepVGGBlockV2), written a second time on a state dict.
"""

import pytest
import torch
import torch.nn.functional as F

from mmseg_repvgg.checkpoint import CheckpointError, read_checkpoint, state_dict_of
from mmseg_repvgg.checkpoint.loading import load_backbone
from mmseg_repvgg.checkpoint.names import identify
from mmseg_repvgg.models import DilatedRepVGG
from tests.checkpoint.parity import TOLERANCE, gap, unfilled

DEPTHS, WIDTHS = (2, 2, 1, 1), (8, 16, 32, 64)
ARCH = dict(num_blocks=DEPTHS, width_factor=(0.125,) * 4)


def norm(x, part, name):
    mean, var = part[f'{name}.running_mean'], part[f'{name}.running_var']
    return F.batch_norm(x, mean, var, part[f'{name}.weight'], part[f'{name}.bias'])


def qa_repvgg(part, x, stride):
    """post_bn(bn(conv3x3(x)) + alpha * conv1x1(x) + x), super-gradients' QARepVGGBlock."""
    y = norm(F.conv2d(x, part['branch_3x3.conv.weight'], None, stride, 1), part, 'branch_3x3.bn')
    one = F.conv2d(x, part['branch_1x1.weight'], part.get('branch_1x1.bias'), stride)
    y = y + part.get('alpha', 1) * one
    y = y + x if y.shape == x.shape else y
    return norm(y, part, 'post_bn').relu()


def repvgg(part, x, stride):
    """bn(conv3x3(x)) + alpha * bn(conv1x1(x)) + bn(x), super-gradients' RepVGGBlock."""
    y = norm(F.conv2d(x, part['branch_3x3.conv.weight'], None, stride, 1), part, 'branch_3x3.bn')
    one = norm(F.conv2d(x, part['branch_1x1.conv.weight'], None, stride), part, 'branch_1x1.bn')
    y = y + part.get('alpha', 1) * one
    return (norm(x, part, 'no_conv_branch') + y if y.shape == x.shape else y).relu()


def random_part(kind, c_in, c_out, keeps, extras):
    part = {'branch_3x3.conv.weight': torch.randn(c_out, c_in, 3, 3) / (3 * c_in**0.5)}
    norms = ['branch_3x3.bn']
    if kind is qa_repvgg:
        norms.append('post_bn')
        part['branch_1x1.weight'] = torch.randn(c_out, c_in, 1, 1) / c_in**0.5
        # in training form a placeholder, which is random
        part['rbr_reparam.weight'] = torch.randn(c_out, c_in, 3, 3)
        part['rbr_reparam.bias'] = torch.randn(c_out)
        if extras:
            part['branch_1x1.bias'] = torch.randn(c_out)
    else:
        norms += ['branch_1x1.bn', *['no_conv_branch'] * keeps]
        part['branch_1x1.conv.weight'] = torch.randn(c_out, c_in, 1, 1) / c_in**0.5
    for name in norms:
        part[f'{name}.weight'], part[f'{name}.bias'] = 0.5 + torch.rand(c_out), torch.randn(c_out)
        part[f'{name}.running_mean'] = torch.randn(c_out)
        part[f'{name}.running_var'] = 0.5 + torch.rand(c_out)
        part[f'{name}.num_batches_tracked'] = torch.tensor(3)
    if extras:
        part['alpha'] = torch.rand(1) + 0.5
    return part


def network(kind, extras):
    """A state dict, and the feature maps of the stages for an image."""
    torch.manual_seed(0)
    state, maps, channels = {}, [], 3
    x = image = torch.randn(1, 3, 64, 64)
    names = ['stem', *(f'stage{i + 1}.{j}' for i in range(4) for j in range(DEPTHS[i]))]
    for name in names:
        stage = int(name[5]) - 1 if name != 'stem' else 0
        width, is_first = WIDTHS[stage], name == 'stem' or name.endswith('.0')
        part = random_part(kind, channels, width, not is_first, extras)
        x = kind(part, x, 2 if is_first else 1)
        state.update({f'{name}.{rest}': tensor for rest, tensor in part.items()})
        maps.append(x)
        channels = width
    state['linear.weight'], state['linear.bias'] = torch.ones(2, 64), torch.zeros(2)
    ends = torch.tensor(DEPTHS).cumsum(0).tolist()
    return state, image, [maps[end] for end in ends]


@pytest.mark.parametrize('extras', [False, True])
@pytest.mark.parametrize('kind', [repvgg, qa_repvgg], ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_weights_of_super_gradients_give_its_features_in_both_forms(kind, extras, tmp_path):
    state, image, expected = network(kind, extras)
    torch.save(dict(net=state, acc=torch.tensor(0.7)), tmp_path / 'ckpt_best.pth')
    weights = state_dict_of(read_checkpoint(tmp_path / 'ckpt_best.pth'))
    assert identify(weights).scheme == 'super_gradients'
    assert identify(weights).form == 'training'  # although placeholders of fused convs are there
    ours = unfilled(ARCH, block=kind.__name__)
    line = load_backbone(ours, weights, 'ckpt_best.pth')
    assert 'names: super_gradients' in line
    assert gap(ours(image), expected) <= TOLERANCE
    fused = unfilled(ARCH, block=kind.__name__, deploy=True)
    load_backbone(fused, weights, 'ckpt_best.pth')
    assert gap(fused(image), expected) <= TOLERANCE
    for name in ('stage2.1.branch_3x3.bn.bias', *['stage2.1.alpha'] * extras):  # negative control
        load_backbone(ours, {**state, name: state[name] * 1.5}, 'a.pth')
        assert gap(ours(image), expected) > 10 * TOLERANCE


@torch.no_grad()
def test_the_bias_of_the_1x1_branch_acts_in_inference_only():
    """In training the BatchNorm after the addition removes it, by hand: mean - bias."""
    state, image, expected = network(qa_repvgg, extras=True)
    ours = unfilled(ARCH, block='qa_repvgg')
    load_backbone(ours, state, 'a.pth')
    found = ours.stage_1[0].norm.running_mean
    shift = state['stage1.0.alpha'] * state['stage1.0.branch_1x1.bias']
    torch.testing.assert_close(found, state['stage1.0.post_bn.running_mean'] - shift)
    without = {name: t for name, t in state.items() if not name.endswith('branch_1x1.bias')}
    load_backbone(ours, without, 'a.pth')
    assert gap(ours(image), expected) > 10 * TOLERANCE  # negative control


def test_fused_weights_of_super_gradients_load_fused():
    model = DilatedRepVGG(ARCH, block='qa_repvgg', deploy=True)
    named = {
        name.replace('stage_', 'stage').replace('branch_reparam', 'rbr_reparam'): tensor
        for name, tensor in model.state_dict().items()
    }
    assert identify(named).form == 'deploy'
    other = DilatedRepVGG(ARCH, deploy=True)
    assert 'tensors loaded' in load_backbone(other, named, 'a.pth')
    assert all(torch.equal(t, model.state_dict()[n]) for n, t in other.state_dict().items())


@pytest.mark.parametrize('what', ['no post_bn', 'partly fused', 'another block'])
def test_other_blocks_of_super_gradients_are_refused(what):
    state, *_ = network(qa_repvgg, extras=True)
    block = 'qa_repvgg'
    if what == 'no post_bn':  # use_post_bn=False
        state = {name: tensor for name, tensor in state.items() if 'post_bn' not in name}
    elif what == 'partly fused':  # fuse_block_residual_branches() keeps post_bn
        state = {name: tensor for name, tensor in state.items() if 'branch_' not in name}
    else:
        block = 'repvgg'
    with pytest.raises(CheckpointError, match='a.pth does not fit the model'):
        load_backbone(DilatedRepVGG(ARCH, block=block), state, 'a.pth')


@torch.no_grad()
def test_weights_of_qarepvggs_own_code():
    """rbr_1x1 is a conv without bias, bn the norm after the addition; the stem is stage0."""
    state, image, expected = network(qa_repvgg, extras=False)
    theirs = {'branch_3x3': 'rbr_dense', 'branch_1x1': 'rbr_1x1', 'post_bn': 'bn', 'stem': 'stage0'}
    named = {}
    for name, tensor in state.items():
        if 'rbr_reparam' not in name:
            named['.'.join(theirs.get(part, part) for part in name.split('.'))] = tensor
    assert identify(named).scheme == 'official'
    ours = unfilled(ARCH, block='qa_repvgg')
    assert 'names: official' in load_backbone(ours, named, 'qa.pth')
    assert gap(ours(image), expected) <= TOLERANCE
