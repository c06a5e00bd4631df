"""1x1 convs as matrix products: equal to the conv, and a conv wherever something looks on."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from mmseg_repvgg.benchmark.training import kept_bytes
from mmseg_repvgg.models import RepVGGBlock
from mmseg_repvgg.models.pointwise import WIDEST, pointwise
from mmseg_repvgg.models.recompute import PRODUCT

TOLERANCES = [(torch.float32, 1e-5), (torch.float64, 1e-12)]


def conv_and_input(dtype=torch.float32, in_channels=6, out_channels=10, **settings):
    torch.manual_seed(0)
    conv = nn.Conv2d(in_channels, out_channels, 1, **dict(dict(bias=False), **settings))
    return conv.to(dtype), torch.randn(3, in_channels, 7, 5, dtype=dtype)


def is_product(y):
    node = y.grad_fn
    return node.name() == 'ViewBackward0' and node.next_functions[0][0].name() == PRODUCT


@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('stride', [1, 2, (3, 2), 8])
@pytest.mark.parametrize(('dtype', 'tolerance'), TOLERANCES, ids=str)
def test_output_and_gradients_are_the_convs(dtype, tolerance, stride, groups):
    conv, x = conv_and_input(dtype, stride=stride, groups=groups)
    found = []
    for run in (pointwise, lambda conv, x: conv(x)):
        x = x.detach().requires_grad_()
        y = run(conv, x)
        gradients = torch.autograd.grad(y.square().sum(), [x, conv.weight], create_graph=True)
        second = torch.autograd.grad(gradients[0].square().sum(), [x, conv.weight])
        found.append((y, *gradients, *second))
    assert is_product(found[0][0]) and not is_product(found[1][0])
    for ours, theirs in zip(*found, strict=True):
        assert ours.is_contiguous() and ours.shape == theirs.shape
        assert ((ours - theirs).norm() / theirs.norm()).item() < tolerance


GEOMETRIES = [dict(stride=2), dict(groups=2), dict(stride=(1, 2), groups=2)]


@pytest.mark.parametrize('settings', GEOMETRIES, ids=str)
def test_input_and_kernel_are_kept_and_nothing_that_is_made_of_them(settings):
    conv, x = conv_and_input(**settings)
    module = nn.Sequential(conv)
    module.forward = lambda x: pointwise(conv, x)
    assert kept_bytes(module, x.requires_grad_())[0] == conv(x).nbytes


@pytest.mark.parametrize('settings', GEOMETRIES, ids=str)
@pytest.mark.parametrize('changed', ['x', 'weight'])
def test_neither_may_change_before_the_backward_pass(settings, changed):
    conv, x = conv_and_input(**settings)
    x = x.requires_grad_().clone()
    y = pointwise(conv, x)
    with torch.no_grad():
        (x if changed == 'x' else conv.weight).add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.sum().backward()


@pytest.mark.parametrize('use_reentrant', [True, False])
def test_within_a_checkpoint_it_is_the_same_product(use_reentrant):
    conv, x = conv_and_input(stride=2)
    x.requires_grad_()
    found = []
    for run in (pointwise, lambda *args: checkpoint(pointwise, *args, use_reentrant=use_reentrant)):
        conv.weight.grad = None
        y = run(conv, x)
        y.square().sum().backward()
        found.append((y, conv.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_wrong_product_is_told_apart():
    """Negative control: the kernel transposed."""
    conv, x = conv_and_input(out_channels=6)
    expected = conv(x.requires_grad_())
    conv.weight.data = conv.weight.data.transpose(0, 1).contiguous()
    assert ((pointwise(conv, x) - expected).norm() / expected.norm()).item() > 0.1


@pytest.mark.parametrize(
    'settings',
    [
        dict(bias=True),
        dict(stride=2, padding=1),
        dict(padding=1),
        dict(in_channels=WIDEST + 2, out_channels=WIDEST + 2),
    ],
    ids=str,
)
def test_other_convs_stay_convs(settings):
    conv, x = conv_and_input(**settings)
    y = pointwise(conv, x.requires_grad_())
    assert not is_product(y)
    assert torch.equal(y, conv(x))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_it_stays_a_conv_where_something_looks_on():
    conv, x = conv_and_input()
    assert pointwise(conv, x).grad_fn.name() == 'ConvolutionBackward0'  # no gradient of x
    x.requires_grad_()
    assert is_product(pointwise(conv, x))
    assert not is_product(pointwise(conv, x.to(memory_format=torch.channels_last)))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert pointwise(conv, x).dtype == torch.bfloat16
    seen = []
    handle = conv.register_forward_hook(lambda *call: seen.append(call))
    assert not is_product(pointwise(conv, x))
    assert len(seen) == 1
    handle.remove()
    parametrize.register_parametrization(conv, 'weight', Doubled())
    assert torch.equal(pointwise(conv, x), conv(x))


def test_exported_and_traced_blocks_hold_convs():
    block = RepVGGBlock(4, 4).eval()
    x = torch.randn(1, 4, 6, 6)
    targets = [str(n.target) for n in torch.export.export(block, (x,)).graph.nodes]
    assert sum('conv2d' in target for target in targets) == 2
    assert not any('bmm' in target for target in targets)
    assert 'bmm' not in str(torch.jit.trace(block, x).inlined_graph)


def test_the_1x1_branch_is_one():
    block = RepVGGBlock(4, 4).train()
    names, waiting = set(), [block(torch.randn(1, 4, 6, 6, requires_grad=True)).grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(node.name())
        waiting += [parent for parent, _ in node.next_functions if parent]
    assert PRODUCT in names
