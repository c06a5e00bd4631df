"""3x3 convs by Winograd equal PyTorch's, and run only where they can."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmseg_repvgg.accel import nnpack, use_winograd, winograd
from mmseg_repvgg.accel.winograd import winograd_conv3x3
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import REWRITES, apply_rewrites, compare, deployed_copy
from mmseg_repvgg.reparam.rewrites import default_names
from tests.accel.by_winograd import ROUNDING, gap, needs_nnpack, use
from tests.common import TINY, randomise_batchnorms

DILATED = dict(strides=(2, 2, 1, 1), dilations=(1, 1, (1, 2, 2), 4))

pytestmark = needs_nnpack


@pytest.mark.parametrize(
    ('batch', 'channels', 'size', 'groups', 'bias'),
    [
        (1, (2, 3), (24, 24), 1, True),
        (1, (8, 8), (33, 47), 1, False),
        (3, (16, 32), (25, 31), 1, True),
        (2, (16, 8), (30, 29), 4, True),
        (1, (64, 64), (90, 91), 2, False),
        (1, (4, 4), (1, 200), 1, True),
        (1, (4, 4), (200, 1), 1, True),
    ],
)
@pytest.mark.parametrize('relu', [False, True])
def test_it_equals_a_float64_conv(calls, batch, channels, size, groups, bias, relu):
    torch.manual_seed(0)
    x = torch.randn(batch, channels[0], *size)
    weight = torch.randn(channels[1], channels[0] // groups, 3, 3)
    shift = torch.randn(channels[1]) if bias else None
    double = [None if t is None else t.double() for t in (x, weight, shift)]
    expected = F.conv2d(*double, padding=1, groups=groups)
    expected = expected.relu() if relu else expected
    assert gap(winograd_conv3x3(x, weight, shift, groups, relu), expected) < ROUNDING
    # negative control: a kernel mirrored, another result
    mirrored = winograd_conv3x3(x, weight.flip(2, 3), shift, groups, relu)
    assert gap(mirrored, expected) > 1e-2
    assert calls == [x.shape] * 2


def test_a_conv_by_hand():
    """All ones: the number of pixels under the kernel, twice, and the bias."""
    x, weight = torch.ones(1, 2, 12, 12), torch.ones(3, 2, 3, 3)
    out = winograd_conv3x3(x, weight, torch.tensor([0.0, 10.0, -20.0]))
    rows = torch.tensor([2.0] + [3.0] * 10 + [2.0])
    expected = 2 * rows.outer(rows) + torch.tensor([0.0, 10.0, -20.0]).view(3, 1, 1)
    assert (out[0] - expected).abs().max() < 1e-4


@pytest.mark.parametrize('kind', ['channels_last', 'every second row', 'expanded', 'transposed'])
def test_maps_in_any_memory_format(calls, kind):
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 4, 3, 3), torch.randn(1).expand(4)
    x = {
        'channels_last': torch.randn(2, 4, 40, 41).to(memory_format=torch.channels_last),
        'every second row': torch.randn(2, 4, 80, 41)[:, :, ::2],
        'expanded': torch.randn(1, 1, 40, 41).expand(2, 4, 40, 41),
        'transposed': torch.randn(2, 4, 41, 40).mT,
    }[kind]
    for kernel in (weight, weight.to(memory_format=torch.channels_last), weight.mT):
        expected = F.conv2d(x.double(), kernel.double(), bias.double(), padding=1)
        assert gap(winograd_conv3x3(x, kernel, bias), expected) < ROUNDING
    assert calls == [(2, 4, 40, 41)] * 3


@pytest.mark.parametrize(
    ('x', 'weight', 'bias', 'groups'),
    [
        ((1, 2, 40, 40), (4, 4, 3, 3), (4,), 1),
        ((1, 8, 40, 40), (4, 4, 3, 3), (4,), 1),
        ((4, 40, 40, 1), (4, 4, 3, 3), (4,), 1),
        ((40, 40), (4, 4, 3, 3), (4,), 1),
        ((1, 4, 40, 40), (4, 4, 3, 3), (5,), 1),
        ((1, 4, 40, 40), (6, 1, 3, 3), (6,), 4),
        ((1, 4, 40, 40), (4, 4, 3, 3), (4,), 0),
        ((1, 4, 40, 40), (4, 4, 3, 3), (4,), -1),
        ((1, 4, 40, 40), (4, 4, 9), (4,), 1),
    ],
)
def test_arguments_that_do_not_fit_raise_the_plain_conv_s_error(calls, x, weight, bias, groups):
    tensors = [torch.zeros(shape) for shape in (x, weight, bias)]
    with pytest.raises((RuntimeError, ValueError)) as expected:
        F.conv2d(*tensors, padding=1, groups=groups)
    with pytest.raises(expected.type) as found:
        winograd_conv3x3(*tensors, groups)
    assert str(expected.value)[:40] in str(found.value)
    assert not calls


def test_a_bias_of_another_dtype_raises_the_plain_conv_s_error(calls):
    conv = use(nn.Conv2d(4, 4, 3, padding=1))
    conv.bias.data = conv.bias.data.double()
    with torch.no_grad(), pytest.raises(RuntimeError, match='bias type'):
        conv(torch.randn(1, 4, 40, 40))
    assert not calls


@pytest.mark.parametrize('shape', [(0, 4, 40, 40), (4, 40, 40), (1, 4, 11, 13), (1, 4, 1, 40)])
def test_what_the_plain_conv_takes_and_nnpack_does_not(calls, shape):
    conv = nn.Conv2d(4, 6, 3, padding=1)
    x = torch.randn(shape)
    with torch.no_grad():
        expected = conv(x)
        assert torch.equal(use(conv)(x), expected)
    assert not calls


class OtherBlock(nn.Module):
    """mmseg's PIDNet and DDRNet have blocks with an ``act`` and no squeeze-excitation."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x))


def test_blocks_of_other_backbones_keep_their_activation():
    block, x = OtherBlock().eval(), torch.randn(1, 4, 40, 40)
    with torch.no_grad():
        expected = block(x)
        assert use_winograd(block) == 1
        assert type(block.act) is nn.ReLU
        assert gap(block(x), expected) < ROUNDING


@pytest.mark.parametrize('batch', [0, 1, 2])
@pytest.mark.parametrize('arch', [TINY, dict(TINY, group_layer_map={2: 2, 5: 4, 8: 2})])
def test_a_backbone_goes_by_winograd_and_gives_the_same(calls, arch, batch):
    torch.manual_seed(0)
    model = randomise_batchnorms(DilatedRepVGG(arch, **DILATED))
    plain, _ = deployed_copy(model, ['branches', 'dilation'])
    fast, counts = deployed_copy(model, ['branches', 'dilation', 'winograd'])
    assert counts == {'branches': 10, 'dilation': 3, 'winograd': 7}
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(batch, 3, 209, 233)  # 27 x 30 at the end
    with torch.no_grad():
        found, expected = fast(x), model(x)
    assert [f.shape for f in found] == [e.shape for e in expected]
    if batch == 0:
        assert not calls
        return
    assert max(gap(f, e) for f, e in zip(found, expected, strict=True)) < ROUNDING
    assert len(calls) == 7
    assert calls[0] == (batch, 8, 53, 59)
    assert calls[-2] == (batch, 32, 30, 32)  # 2 x 2 sub-maps of 14 x 15 and their zeros
    assert calls[-1] == (batch, 32, 32, 36)  # 4 x 4 of 7 x 8


@pytest.mark.parametrize('when', ['before', 'after'])
def test_hooks_of_a_dilated_run_see_whole_maps(calls, when):
    torch.manual_seed(0)
    model = randomise_batchnorms(DilatedRepVGG(TINY, **DILATED))
    fused, _ = deployed_copy(model, ['branches'])
    fast = fused if when == 'before' else deployed_copy(fused, ['dilation', 'winograd'])[0]
    seen = []
    for module in (fast.stage_3, fast.stage_3[1], fast.stage_4[0]):
        module.register_forward_hook(lambda *args: seen.append(args[2]))
    if when == 'before':
        fast, _ = deployed_copy(fused, ['dilation', 'winograd'])
    x = torch.randn(1, 3, 209, 233)
    with torch.no_grad():
        found, expected = fast(x), model(x)
    assert [tuple(t.shape) for t in seen] == [(1, 32, 27, 30)] * 2 + [(1, 64, 27, 30)]
    assert gap(seen[1], expected[2]) < ROUNDING and gap(found[3], expected[3]) < ROUNDING
    assert calls


@pytest.mark.parametrize('wanted', ['x', 'weight', 'bias', 'late stage'])
def test_gradients_that_are_wanted_are_right(calls, wanted):
    """Also of a layer in the middle of a run of dilated ones, whose input needs none."""
    torch.manual_seed(0)
    model = randomise_batchnorms(DilatedRepVGG(TINY, **DILATED))
    x = torch.randn(1, 3, 209, 233)
    found = []
    for names in (['branches'], ['branches', 'dilation', 'winograd']):
        deployed, _ = deployed_copy(model, names)
        deployed = deployed.double().requires_grad_(False)
        image = x.double().requires_grad_(wanted == 'x')
        if wanted == 'late stage':
            deployed.stage_4.requires_grad_(True)
        else:
            parameters = dict(deployed.stage_1[0].branch_reparam.named_parameters())
            parameters.get(wanted, image).requires_grad_(True)
        deployed(image)[-1].square().sum().backward()
        leaves = [image, *deployed.parameters()]
        found.append([leaf.grad for leaf in leaves if leaf.requires_grad])
    assert len(found[0]) == len(found[1]) == (2 if wanted == 'late stage' else 1)
    assert all(gap(a, b) < 1e-12 for a, b in zip(*found, strict=True))
    assert not calls


@pytest.mark.parametrize('reason', ['dtype', 'gradients', 'small', 'autocast', 'stride', 'patched'])
def test_where_it_cannot_or_does_not_pay_the_conv_runs_as_before(calls, reason):
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).eval().requires_grad_(False)
    after = copy.deepcopy(before)
    x = torch.randn(1, 4, 30, 30)
    use(after)
    if reason == 'dtype':
        before, after, x = before.double(), after.double(), x.double()
    if reason == 'small':
        x = x[..., :11, :13]
    if reason == 'stride':  # changed afterwards
        before[0].stride = after[0].stride = (2, 2)
    if reason == 'patched':
        for net in (before, after):
            net[0].forward = lambda x: x + 1
    with torch.set_grad_enabled(reason == 'gradients'), torch.autocast('cpu', enabled=False):
        context = torch.autocast('cpu', torch.bfloat16, enabled=reason == 'autocast')
        with context:
            expected, found = before(x), after(x)
    assert torch.equal(found, expected) and found.dtype == expected.dtype
    assert not calls


def test_without_nnpack_nothing_changes(monkeypatch):
    monkeypatch.setattr(nnpack, 'is_available', lambda: False)
    net = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
    with pytest.warns(UserWarning, match="'winograd' has no effect here"):
        assert use_winograd(net) == 0
    assert type(net[0]) is nn.Conv2d


def test_a_model_that_comes_to_a_machine_without_nnpack(monkeypatch, calls):
    conv, x = nn.Conv2d(4, 4, 3, padding=1), torch.randn(1, 4, 30, 30)
    with torch.no_grad():
        expected = conv(x)
        use(conv)
        monkeypatch.setattr(nnpack, 'is_available', lambda: False)
        assert torch.equal(conv(x), expected)
    assert not calls


def test_twice_is_once_and_single_dilated_convs_are_found(calls):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=4, dilation=4), nn.Conv2d(6, 6, 1)).eval()
    fast, counts = deployed_copy(model, ['dilation', 'winograd'])
    assert counts == {'dilation': 1, 'winograd': 1}
    assert use_winograd(fast) == 0
    for size in ((60, 60), (61, 59)):
        assert compare(model, fast, torch.randn(1, 4, *size)).max_rel < ROUNDING
    assert calls == [(1, 4, 64, 64), (1, 4, 68, 64)]


def test_a_conv_under_two_names_is_one():
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 4, 3, padding=1)
    model = nn.ModuleDict(dict(a=conv, b=nn.Sequential(nn.ReLU(), conv)))
    before, x = copy.deepcopy(model), torch.randn(1, 4, 30, 30)
    assert use_winograd(model) == 1
    assert model['a'] is model['b'][1]
    assert list(model.state_dict()) == list(before.state_dict())
    with torch.no_grad():
        for name in 'ab':
            assert gap(model[name](x), before[name](x)) < ROUNDING


def test_it_is_applied_last_and_by_default_only_where_models_are_compared():
    assert list(REWRITES)[-1] == 'winograd'
    conv = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).eval()
    assert 'winograd' not in default_names(conv)
    assert default_names(conv, compared=True)[-1] == 'winograd'
    assert 'winograd' not in default_names(conv.to('meta'), compared=True)
    backbone = DilatedRepVGG(TINY).eval()
    assert 'winograd' not in apply_rewrites(backbone)
    assert not [m for m in backbone.modules() if isinstance(m, winograd.WinogradConv2d)]
    assert apply_rewrites(backbone, ['winograd']) == {'winograd': 5}
