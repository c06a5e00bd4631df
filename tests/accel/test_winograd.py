"""3x3 convs by Winograd equal PyTorch's, and run only where they can."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmseg_repvgg.accel import nnpack, winograd
from mmseg_repvgg.accel.sub_map_mosaic import best_columns, from_mosaic, run_on_mosaic, to_mosaic
from mmseg_repvgg.accel.winograd import use_winograd, winograd_conv2d
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import REWRITES, compare, deployed_copy
from mmseg_repvgg.reparam.dilation import to_sub_maps
from tests.common import TINY, randomise_batchnorms

ROUNDING = 5e-5  # relative, float32

pytestmark = pytest.mark.skipif(not winograd.is_available(), reason='PyTorch without NNPACK')


def calls_of(monkeypatch) -> list:
    """Watch the convs that go by Winograd."""
    calls, real = [], winograd.winograd_conv2d

    def watched(x, *args):
        calls.append(tuple(x.shape))
        return real(x, *args)

    monkeypatch.setattr(winograd, 'winograd_conv2d', watched)
    return calls


@pytest.mark.parametrize(
    ('batch', 'channels', 'size', 'groups', 'bias'),
    [
        (1, (2, 3), (24, 24), 1, True),
        (1, (8, 8), (33, 47), 1, False),
        (3, (16, 32), (25, 31), 1, True),
        (2, (16, 8), (30, 29), 4, True),
        (1, (64, 64), (90, 91), 2, False),
    ],
)
def test_it_equals_a_float64_conv(batch, channels, size, groups, bias):
    torch.manual_seed(0)
    x = torch.randn(batch, channels[0], *size)
    weight = torch.randn(channels[1], channels[0] // groups, 3, 3)
    shift = torch.randn(channels[1]) if bias else None
    expected = F.conv2d(
        x.double(), weight.double(), None if shift is None else shift.double(), 1, 1, 1, groups
    )
    with torch.no_grad():
        actual = winograd_conv2d(x, weight, shift, groups)
        assert (actual - expected).abs().max() < ROUNDING * expected.abs().max()
        # negative control: a kernel mirrored, another result
        mirrored = winograd_conv2d(x, weight.flip(3), shift, groups)
    assert (mirrored - expected).abs().max() > 1e-2 * expected.abs().max()


def test_a_mosaic_by_hand():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    square = [
        [1, 3, 0, 2, 0, 0],
        [7, 9, 0, 8, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [4, 6, 0, 5, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    column = [
        [1, 3],
        [7, 9],
        [0, 0],
        [2, 0],
        [8, 0],
        [0, 0],
        [4, 6],
        [0, 0],
        [0, 0],
        [5, 0],
        [0, 0],
        [0, 0],
    ]
    row = [[1, 3, 0, 2, 0, 0, 4, 6, 0, 5, 0, 0], [7, 9, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]]
    for columns, expected in ((2, square), (1, column), (4, row)):
        assert to_mosaic(x, 2, columns)[0, 0].tolist() == expected
    with pytest.raises(ValueError, match='columns=3 must be 1, 2 or 4'):
        to_mosaic(x, 2, 3)
    for step, size in ((2, (7, 10)), (3, (9, 11)), (4, (5, 4))):
        x = torch.randn(2, 3, *size)
        mosaic, maps = to_mosaic(x, step, step), to_sub_maps(x, step).unflatten(0, (step, step, 2))
        h, w = maps.shape[-2:]
        for i in range(step):
            for j in range(step):
                rows, columns = slice(i * (h + 1), i * (h + 1) + h), slice(j * (w + 1), None)
                assert torch.equal(mosaic[:, :, rows, columns][..., :w], maps[i, j])
        for columns in (1, step, step**2):
            mosaic = to_mosaic(x, step, columns)
            assert torch.equal(from_mosaic(mosaic, step, columns, size), x)


def test_the_columns_that_take_the_fewest_tiles():
    # 4 sub-maps of 45 x 45: 2 x 46 is 16 tiles of 6, 4 x 46 is 31, 45 is 8
    assert best_columns((90, 90), 2, 6) == 1  # 31 * 8 < 16 * 16
    assert best_columns((60, 80), 2, 6) == 4  # 30 x 164: 5 * 28 < 21 * 7, 11 * 14
    assert best_columns((61, 59), 4, 6) == 16  # 16 x 256: 3 * 43 < 12 * 11
    assert best_columns((80, 80), 4, 6) == 4  # 84 x 84: 14 * 14 < 56 * 4


@pytest.mark.parametrize('size', [(9, 9), (8, 8), (7, 12), (3, 2)])
@pytest.mark.parametrize('step', [2, 3, 4])
@pytest.mark.parametrize('columns', [0, 1, 2], ids=['one', 'as rows', 'all'])
def test_a_run_on_a_mosaic_equals_the_dilated_run(size, step, columns):
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, 3, padding=1).double().requires_grad_(False) for _ in range(3)]
    layers = [nn.Sequential(conv, nn.ReLU()) for conv in convs]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    expected = x
    for conv in convs:
        expected = F.conv2d(expected, conv.weight, conv.bias, 1, step, step).relu()
    assert (run_on_mosaic(layers, x, step, step**columns) - expected).abs().max() < 1e-12


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
        assert (block(x) - expected).abs().max() < 1e-4


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('arch', [TINY, dict(TINY, group_layer_map={2: 2, 5: 4, 8: 2})])
def test_a_backbone_goes_by_winograd_and_gives_the_same(monkeypatch, arch, batch):
    torch.manual_seed(0)
    settings = dict(strides=(2, 2, 1, 1), dilations=(1, 1, (1, 2, 2), 4))
    model = randomise_batchnorms(DilatedRepVGG(arch, **settings))
    plain, _ = deployed_copy(model, ['branches', 'dilation'])
    fast, counts = deployed_copy(model, ['branches', 'dilation', 'winograd'])
    assert counts == {'branches': 10, 'dilation': 3, 'winograd': 7}
    assert fast.state_dict().keys() == plain.state_dict().keys()
    calls = calls_of(monkeypatch)
    x = torch.randn(batch, 3, 209, 233)  # 27 x 30 at the end
    with torch.no_grad():
        for a, b in zip(fast(x), model(x), strict=True):
            assert (a - b).abs().max() < ROUNDING * b.abs().max()
    assert len(calls) == 7
    assert calls[0] == (batch, 8, 53, 59)
    assert calls[-2] == (batch, 32, 30, 32)  # sub-maps of 14 x 15 of two runs, side by side
    assert calls[-1] == (batch, 32, 32, 36)
    # negative control: without the zeros between the sub-maps it is another network
    monkeypatch.setattr(winograd, 'run_on_mosaic', lambda layers, y, *_: _unseparated(layers, y))
    with torch.no_grad():
        wrong, right = fast(x)[-1], model(x)[-1]
    assert (wrong - right).abs().max() > 1e-2 * right.abs().max()


def _unseparated(layers, x):
    for layer in layers:
        x = layer(x)
    return x


@pytest.mark.parametrize('reason', ['dtype', 'gradients', 'small', 'stride', 'export', 'absent'])
def test_where_it_cannot_or_does_not_pay_the_conv_runs_as_before(monkeypatch, reason):
    torch.manual_seed(0)
    before = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, stride=2 if reason == 'stride' else 1))
    after = copy.deepcopy(before)
    x = torch.randn(1, 4, 30, 30)
    if reason == 'absent':
        monkeypatch.setattr(winograd, 'is_available', lambda: False)
        with pytest.warns(UserWarning, match="'winograd' has no effect here"):
            assert use_winograd(after) == 1
    else:
        assert use_winograd(after) == (0 if reason == 'stride' else 1)
    calls = calls_of(monkeypatch)
    if reason == 'dtype':
        before, after, x = before.double(), after.double(), x.double()
    if reason == 'small':
        x = x[..., :11, :13]
    if reason == 'gradients':
        after(x).sum().backward()
        assert after[0].weight.grad is not None
        assert torch.equal(after(x), before(x))
    elif reason == 'export':
        program = torch.export.export(after, (x,))
        assert not [n for n in program.graph.nodes if 'nnpack' in str(n.target)]
        assert torch.equal(program.module()(x), before(x))
    else:
        with torch.no_grad():
            assert torch.equal(after(x), before(x))
    assert not calls


def test_twice_is_once_and_single_dilated_convs_are_found(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=4, dilation=4), nn.Conv2d(6, 6, 1)).eval()
    fast, counts = deployed_copy(model, ['dilation', 'winograd'])
    assert counts == {'dilation': 1, 'winograd': 1}
    assert use_winograd(fast) == 0
    calls = calls_of(monkeypatch)
    for size in ((60, 60), (61, 59)):
        assert compare(model, fast, torch.randn(1, 4, *size)).max_rel < ROUNDING
    assert calls == [(1, 4, 64, 64), (1, 4, 16, 256)]


class Kept:
    """A conv whose transformed kernels are kept, and an image."""

    def __init__(self, groups=2):
        torch.manual_seed(0)
        self.conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=groups)).eval()
        assert use_winograd(self.conv) == 1
        self.x = torch.randn(2, 4, 20, 21)

    def check(self, conv=None):
        module = (conv or self.conv)[0]
        expected = F.conv2d(
            self.x.double(), module.weight.double(), module.bias.double(), 1, 1, 1, module.groups
        )
        with torch.no_grad():
            gap = (module(self.x) - expected).abs().max() / expected.abs().max()
        assert gap < ROUNDING
        return module


@pytest.mark.skipif(not nnpack.is_available(), reason='NNPACK without its C interface')
class TestKeptKernels:
    def test_they_are_transformed_once(self, monkeypatch):
        kept = Kept()
        module = kept.check()
        first = module._kept[1]
        assert [k.channels for k in first] == [(2, 3), (2, 3)]
        assert sum(k.values.numel() for k in first) == nnpack.transformed_bytes(module.weight)
        monkeypatch.setattr(nnpack.TransformedKernel, '__init__', None)  # none is made
        assert kept.check()._kept[1] is first
        assert list(module.state_dict()) == ['weight', 'bias']

    @pytest.mark.parametrize('way', ['in place', 'state dict', 'another tensor'])
    def test_they_follow_the_weight(self, way):
        kept = Kept()
        module = kept.check()
        other = torch.randn(module.weight.shape)
        if way == 'in place':
            module.weight.data.zero_()
            with torch.no_grad():
                module.weight += other
        elif way == 'state dict':
            module.load_state_dict(dict(weight=other, bias=module.bias))
        else:
            module.weight = nn.Parameter(other)
        assert torch.equal(module.weight, other)
        kept.check()

    @pytest.mark.parametrize('way', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_make_their_own(self, way):
        kept = Kept()
        kept.check()
        other = way(kept.conv)
        assert other[0]._kept is None
        kept.check(other)
        assert other[0]._kept is not None

    @pytest.mark.parametrize('reason', ['no room', 'no interface', 'inference tensor'])
    def test_without_them_it_is_the_same(self, monkeypatch, reason):
        if reason == 'no room':
            monkeypatch.setattr(winograd, 'SHARE_KEPT', 1e-12)
        if reason == 'no interface':
            monkeypatch.setattr(nnpack, 'is_available', lambda: False)
        kept = Kept()
        kept.x = torch.randn(1, 4, 30, 31)
        if reason == 'inference tensor':
            with torch.inference_mode():
                kept.conv = copy.deepcopy(kept.conv)
                kept.conv[0].weight = nn.Parameter(kept.conv[0].weight.clone())
        assert kept.check()._kept is None

    def test_other_numbers_of_threads(self):
        kept = Kept()
        before = torch.get_num_threads()
        try:
            for threads in (1, 3):
                torch.set_num_threads(threads)
                kept.check()
        finally:
            torch.set_num_threads(before)

    def test_what_nnpack_refuses_is_an_error(self):
        kernel = nnpack.TransformedKernel(torch.randn(4, 4, 3, 3))
        kernel.channels = (0, 4)
        with pytest.raises(nnpack.NnpackError, match='refused'):
            kernel.convolve(torch.randn(1, 4, 20, 20), None)


def test_it_is_applied_last():
    assert list(REWRITES)[-1] == 'winograd'
