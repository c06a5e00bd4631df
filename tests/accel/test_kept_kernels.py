"""Transformed kernels are kept as long as they are those of the weight, and take bounded memory."""

import copy
import gc
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from mmengine.hooks import EMAHook
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

from mmseg_repvgg.accel import nnpack, winograd
from mmseg_repvgg.reparam.dilation import undilate
from tests.accel.by_winograd import ROUNDING, gap, needs_nnpack, use

pytestmark = needs_nnpack


@pytest.fixture
def transformed(monkeypatch) -> list:
    """The shapes of the kernels that are transformed."""
    shapes, real = [], nnpack.transform_kernel

    def watched(weight):
        shapes.append(tuple(weight.shape))
        return real(weight)

    monkeypatch.setattr(nnpack, 'transform_kernel', watched)
    return shapes


def make_conv(groups=2):
    torch.manual_seed(0)
    return use(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups)))


X = torch.randn(2, 4, 20, 21, generator=torch.Generator().manual_seed(1))


def expect(weight, bias, groups=2):
    return F.conv2d(X.double(), weight.double(), bias.double(), 1, 1, 1, groups)


def kept_bytes():
    return sum(winograd._kept_bytes(entry.values) for entry, _ in winograd._kept.values())


def check(net):
    conv = net[0]
    with torch.no_grad():
        out = net(X)
        assert gap(out, expect(conv.weight, conv.bias)) < ROUNDING
    return out


def test_they_are_transformed_once(calls, transformed):
    net = make_conv()
    for context in (torch.no_grad(), torch.inference_mode(), torch.no_grad()):
        with context:
            check(net)
    assert transformed == [(3, 2, 3, 3)] * 2  # one of each group
    assert calls == [X.shape] * 3
    assert list(net.state_dict()) == ['0.weight', '0.bias']
    # 64 values for each of the 12 kernels, and a copy of 9
    kept, _ = winograd._kept[id(net[0].weight)]
    tensors = [kept.values, *kept.kernels]
    assert sum(t.nbytes for t in tensors) == winograd._kept_bytes(kept.values) == 12 * (64 + 9) * 4


OTHER = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(2))


def in_place(net):
    with torch.no_grad():
        net[0].weight.copy_(OTHER)


def through_data(net):
    net[0].weight.data.copy_(OTHER)


def new_data(net):
    net[0].weight.data = OTHER.clone()


def numpy_view(net):
    net[0].weight.detach().numpy()[:] = OTHER.numpy()


def one_value(net):
    net[0].weight.data.copy_(OTHER)
    check(net)
    net[0].weight.detach().numpy()[5, 1, 2, 2] += 100


def state_dict(net):
    net.load_state_dict({'0.weight': OTHER, '0.bias': net[0].bias})


def assigned_state_dict(net):
    file = io.BytesIO()
    torch.save({'0.weight': OTHER, '0.bias': net[0].bias.detach()}, file)
    file.seek(0)
    net.load_state_dict(torch.load(file), assign=True)


def another_parameter(net):
    net[0].weight = None  # its memory may be that of the next
    net[0].weight = nn.Parameter(OTHER.clone())


def optimizer_step(net):
    net[0].weight.grad = torch.ones(6, 2, 3, 3)
    torch.optim.SGD([net[0].weight], lr=1.0).step()


def half_and_back(net):
    net.half().float()


def double_and_back(net):
    net.double()
    net[0].weight.data.mul_(3)
    net.float()


def ema_hook(net):
    hook, averaged = EMAHook(), copy.deepcopy(net)
    averaged[0].weight.data.copy_(OTHER)
    hook.src_model, hook.ema_model = net, ExponentialMovingAverage(averaged)
    hook._swap_ema_parameters()


def channels_last(net):
    net[0].weight.data.copy_(OTHER)
    net.to(memory_format=torch.channels_last)


CHANGES = [
    in_place,
    through_data,
    new_data,
    numpy_view,
    one_value,
    state_dict,
    assigned_state_dict,
    another_parameter,
    optimizer_step,
    half_and_back,
    double_and_back,
    ema_hook,
    channels_last,
]


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
def test_they_follow_the_weight(calls, change, mode):
    net = make_conv()
    with mode():
        before, old = check(net), net[0].weight.detach().clone()
    change(net)
    assert not torch.equal(net[0].weight, old)
    calls.clear()
    with mode():
        after = check(net)
    assert calls == [X.shape]
    assert not torch.equal(before, after)


def test_they_follow_the_weight_of_a_single_dilated_conv(calls):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=2, dilation=2))
    assert undilate(net) == 1
    use(net)
    for _ in range(2):
        with torch.no_grad():
            expected = F.conv2d(X.double(), *(p.double() for p in net[0].parameters()), 1, 2, 2)
            assert gap(net(X), expected) < ROUNDING
        net[0].weight.data.normal_()
    assert len(calls) == 2


def test_they_follow_the_weights_of_functional_call():
    net = make_conv()
    check(net)
    for seed in range(4):
        weight = torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(seed))
        for given in (weight, nn.Parameter(weight)):
            with torch.no_grad():
                out = functional_call(net, {'0.weight': given}, (X,))
            assert gap(out, expect(weight, net[0].bias)) < ROUNDING
    check(net)


def test_weights_that_are_computed():
    net = make_conv()
    check(net)
    prune.l1_unstructured(net[0], 'weight', 0.5)
    check(net)
    net[0].weight_orig.data.normal_()
    net[0](X)  # computes the weight
    check(net)
    prune.remove(net[0], 'weight')
    check(net)

    class Twice(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(net[0], 'weight', Twice())
    check(net)
    net[0].parametrizations.weight.original.data.normal_()
    check(net)


def test_a_weight_that_is_not_a_number_is_transformed_once(transformed):
    net = make_conv()
    net[0].weight.data[0, 0, 0, 0] = float('nan')
    with torch.no_grad():
        assert net(X)[:, 0].isnan().any() and net(X)[:, 1:].isfinite().all()
    assert len(transformed) == 2


@pytest.mark.parametrize('way', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_make_their_own(calls, way):
    net = make_conv()
    first = check(net)
    other = way(net)
    assert torch.equal(check(other), first)
    other[0].weight.data.copy_(OTHER)
    check(other)
    assert torch.equal(check(net), first)
    assert len(calls) == 4


@pytest.mark.parametrize('change', ['deleted', 'replaced', 'double', 'meta'])
def test_they_are_freed(change):
    net = make_conv()
    gc.collect()
    others = len(winograd._kept)
    check(net)
    assert len(winograd._kept) == others + 1
    if change == 'deleted':
        del net
    elif change == 'replaced':
        net[0].weight = nn.Parameter(OTHER)
    else:
        net.to(torch.double if change == 'double' else 'meta')
    gc.collect()
    assert len(winograd._kept) == others


def test_their_memory_is_bounded(monkeypatch, calls, transformed):
    """A process keeps as many as there is room for; the other convs run as before."""
    gc.collect()
    kept = kept_bytes()
    one = 12 * (64 + 9) * 4
    monkeypatch.setattr(winograd, 'SHARE_OF_MEMORY', 0.5)
    monkeypatch.setattr(winograd, '_memory_limit', lambda: 2 * (kept + 2 * one))
    nets = [make_conv() for _ in range(3)]
    for _ in range(2):
        for net in nets:
            check(net)
    assert len(calls) == 4 and len(transformed) == 4
    assert kept_bytes() == kept + 2 * one
    nets[0][0].weight.data.copy_(OTHER)  # new ones take the place of the old
    check(nets[0])
    assert len(calls) == 5
    del nets[0], net
    gc.collect()
    check(nets[1])  # there is room again
    assert len(calls) == 6
