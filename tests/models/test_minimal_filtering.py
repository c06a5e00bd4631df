"""F(2, 3) of 3x3 convs that train: equal to the conv, and a conv wherever something looks on."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from mmseg_repvgg.models import RepVGGBlock, freed_memory, minimal_filtering
from mmseg_repvgg.models.minimal_filtering import (
    conv3x3,
    transform_input,
    transform_kernel,
    transform_output,
    transposed_input,
    transposed_kernel,
    transposed_output,
)

NODE = '_Conv3x3Backward'


@pytest.fixture(autouse=True)
def memory_is_kept(monkeypatch):
    monkeypatch.setattr(freed_memory, '_kept', True)


@pytest.fixture
def for_all_sizes(monkeypatch):
    """Take the way that only wide layers and large maps take; a small part of a batch at a time."""
    monkeypatch.setattr(minimal_filtering, 'NARROWEST', 1)
    monkeypatch.setattr(minimal_filtering, 'SMALLEST', 1)
    monkeypatch.setattr(minimal_filtering, 'FEWEST', 1)
    monkeypatch.setattr(minimal_filtering, 'CHUNK', 1)


def layer(dtype=torch.float32, size=(8, 6), batch=3, channels=(4, 6), dilation=1, **settings):
    torch.manual_seed(0)
    settings = dict(dict(padding=dilation, bias=False), **settings)
    conv = nn.Conv2d(*channels, 3, dilation=dilation, **settings)
    return conv.to(dtype), torch.randn(batch, channels[0], *size, dtype=dtype)


def error(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def outputs_and_gradients(run, x, *wanted):
    """Of a loss that is not linear in the output."""
    y = run(x)
    return [y, *torch.autograd.grad(y.square().sum(), wanted)]


def test_two_outputs_are_those_of_the_filter_by_hand():
    """Rows 1, 2 of a column under the taps 1, 2, 3: 0 * 1 + 1 * 2 + 2 * 3 = 8, 1 + 4 = 5."""
    column = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1)
    rows = transform_input(column, 1)
    assert rows.flatten().tolist() == [-2, 3, 1, 1]  # 0 - 2, 1 + 2, 2 - 1, 1 - 0
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, :, 1] = torch.tensor([1.0, 2.0, 3.0])
    kernels = transform_kernel(weight)
    assert kernels[:, 0, 0, 1].tolist() == [1, 3, 1, 3]  # a, (a + b + c) / 2, (a - b + c) / 2, c
    out = torch.empty(1, 1, 2, 1)
    transform_output(rows * kernels[:, 0, 0, 1].view(1, 4, 1, 1), 1, out)
    # products -2, 9, 1, 3: -2 + 9 + 1 and 9 - 1 - 3
    assert out.flatten().tolist() == [8, 5]
    assert torch.equal(functional.conv2d(column, weight, padding=1), out)


@pytest.mark.parametrize('dilation', [1, 2, 3])
@pytest.mark.parametrize('height', [6, 7, 12])
def test_gradients_go_back_by_the_transposes(height, dilation):
    """<T x, y> = <x, T^T y> for all of the three transforms."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, height, 5, dtype=torch.float64)
    for forward, transposed in (
        (lambda x: transform_input(x, dilation), transposed_input),
        (lambda x: transposed_output(x, dilation), transform_output),
    ):
        y = torch.randn_like(forward(x))
        back = torch.empty_like(x)
        transposed(y, dilation, back)
        assert torch.allclose((forward(x) * y).sum(), (x * back).sum())
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    y = torch.randn_like(transform_kernel(weight))
    assert torch.allclose(
        (transform_kernel(weight) * y).sum(), (weight * transposed_kernel(y)).sum()
    )


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize(
    ('size', 'dilation'),
    [((8, 6), 1), ((7, 5), 1), ((1, 4), 1), ((2, 3), 1), ((12, 9), 2), ((9, 9), 4), ((3, 3), 4)],
    ids=str,
)
def test_outputs_and_gradients_are_the_convs(for_all_sizes, size, dilation, groups, dtype):
    conv, x = layer(dtype, size, dilation=dilation, groups=groups)
    x.requires_grad_()
    ours = outputs_and_gradients(lambda x: conv3x3(conv, x), x, x, conv.weight)
    theirs = outputs_and_gradients(conv, x, x, conv.weight)
    assert ours[0].grad_fn.name() == NODE
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.is_contiguous()
        assert error(a, b) < (1e-12 if dtype == torch.float64 else 1e-6)


def test_it_rounds_no_more_than_the_conv():
    conv, x = layer(channels=(128, 128), size=(28, 28), batch=6)
    x = x.relu().requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, conv.weight)]
    gradient = torch.randn(6, 128, 28, 28)

    def found(y, gradient, *wanted):
        return [y, *torch.autograd.grad(y, wanted, gradient)]

    expected = found(functional.conv2d(*exact, padding=1), gradient.double(), *exact)
    ours = found(conv3x3(conv, x), gradient, x, conv.weight)
    theirs = found(conv(x), gradient, x, conv.weight)
    assert ours[0].grad_fn.name() == NODE  # wide and large enough without being told
    for a, b, e in zip(ours, theirs, expected, strict=True):
        assert error(a, e) < 1.5 * error(b, e) < 2e-6


@pytest.mark.parametrize(
    'name', ['transform_input', 'transform_kernel', 'transposed_output', 'transposed_kernel']
)
def test_a_wrong_transform_is_told_apart(for_all_sizes, monkeypatch, name):
    """Negative control of the comparison: a hundredth off in one of the four rows."""
    conv, x = layer()
    x.requires_grad_()
    right = getattr(minimal_filtering, name)

    def wrong(*args):
        out = right(*args)
        out[:, :1] *= 1.01
        return out

    monkeypatch.setattr(minimal_filtering, name, wrong)
    ours = outputs_and_gradients(lambda x: conv3x3(conv, x), x, x, conv.weight)
    theirs = outputs_and_gradients(conv, x, x, conv.weight)
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) > 1e-4


def test_only_the_gradients_that_are_wanted_are_found(for_all_sizes):
    conv, x = layer()
    y = conv3x3(conv, x)  # an input without gradient
    assert y.grad_fn.name() == NODE
    y.square().sum().backward()
    assert (
        error(conv.weight.grad, torch.autograd.grad(conv(x).square().sum(), conv.weight)[0]) < 1e-6
    )


def test_second_derivatives_are_the_convs(for_all_sizes):
    conv, x = layer(torch.float64)
    x.requires_grad_()
    found = []
    for run in (lambda x: conv3x3(conv, x), conv):
        first = torch.autograd.grad(run(x).pow(3).sum(), [x, conv.weight], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, conv.weight])
        found.append([*first, *second])
    assert all(error(a, b) < 1e-12 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    'settings',
    [
        dict(stride=2),
        dict(bias=True),
        dict(padding=0),
        dict(padding='same'),
        dict(padding_mode='circular'),
        dict(dilation=(1, 2), padding=(1, 2)),
    ],
    ids=str,
)
def test_other_convs_stay_convs(for_all_sizes, settings):
    conv, x = layer(**settings)
    y = conv3x3(conv, x.requires_grad_())
    assert y.grad_fn.name() != NODE
    assert torch.equal(y, conv(x))


def test_it_stays_a_conv_where_it_does_not_pay():
    for channels, size in (((128, 64), (64, 64)), ((128, 128), (8, 8))):
        conv, x = layer(channels=channels, size=size)
        assert conv3x3(conv, x).grad_fn.name() == 'ConvolutionBackward0'


def test_it_stays_a_conv_where_freed_memory_is_not_kept(for_all_sizes, monkeypatch):
    monkeypatch.setattr(freed_memory, '_kept', False)
    conv, x = layer()
    assert conv3x3(conv, x).grad_fn.name() == 'ConvolutionBackward0'


def test_it_stays_a_conv_where_something_looks_on(for_all_sizes):
    conv, x = layer()

    def is_filtered(x):
        node = conv3x3(conv, x).grad_fn
        return node is not None and node.name() == NODE

    assert is_filtered(x)
    assert not is_filtered(x.to(memory_format=torch.channels_last))
    with torch.no_grad():
        assert torch.equal(conv3x3(conv, x), conv(x))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        assert conv3x3(conv, x).dtype == torch.bfloat16
    for transform in (torch.func.grad(lambda x: conv3x3(conv, x).sum()), torch.vmap(lambda x: x)):
        transform(x)
    _, tangent = torch.func.jvp(lambda x: conv3x3(conv, x), (x,), (x,))
    assert error(tangent, conv(x)) < 1e-6
    handle = conv.register_forward_hook(lambda *call: None)
    assert not is_filtered(x)
    handle.remove()
    conv.weight.requires_grad_(False)
    assert not is_filtered(x.requires_grad_())
    conv.weight.requires_grad_(True)
    conv.eval()
    assert torch.equal(conv3x3(conv, x), conv(x))


def test_the_input_may_not_change_before_the_backward_pass(for_all_sizes):
    conv, x = layer()
    y = conv3x3(conv, x).sum()
    x.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        y.backward()


@pytest.mark.parametrize(
    'settings', [dict(), dict(dilation=2), dict(groups=2), dict(out_channels=12)], ids=str
)
def test_a_block_trains_as_without(for_all_sizes, monkeypatch, settings):
    settings = dict(dict(in_channels=8, out_channels=8), **settings)
    torch.manual_seed(0)
    block = RepVGGBlock(**settings).train()
    x = torch.randn(2, 8, 12, 7, requires_grad=True)
    found = [outputs_and_gradients(block, x, x, *block.parameters())]
    monkeypatch.setattr(minimal_filtering, 'NARROWEST', 2**20)
    found.append(outputs_and_gradients(block, x, x, *block.parameters()))
    assert all(error(a, b) < 1e-5 for a, b in zip(*found, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # two ways


def test_exported_and_traced_blocks_hold_convs(for_all_sizes):
    block, x = RepVGGBlock(4, 4).train(), torch.randn(2, 4, 6, 6)
    assert (
        str(torch.jit.trace(block, x, check_trace=False).inlined_graph).count('_convolution') == 2
    )
    targets = [str(n.target) for n in torch.export.export(block, (x,)).graph.nodes]
    assert sum('conv2d' in target for target in targets) == 2


def test_threads_of_a_batch_are_all_the_same(for_all_sizes, monkeypatch):
    """However many images are transformed at a time."""
    conv, x = layer(batch=5)
    x.requires_grad_()
    found = []
    for chunk, kernels in itertools.product((1, 2**20), (1,)):
        monkeypatch.setattr(minimal_filtering, 'CHUNK', chunk * kernels)
        found.append(outputs_and_gradients(lambda x: conv3x3(conv, x), x, x, conv.weight))
    assert all(error(a, b) < 1e-6 for a, b in zip(*found, strict=True))
