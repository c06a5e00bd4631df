"""BatchNorm in training by vectorised sums: equal to PyTorch's, which everything else takes."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from mmseg_repvgg.models import RepVGGBlock, batch_statistics
from mmseg_repvgg.models.batch_statistics import normed
from tests.common import randomise_batchnorms

NODE = '_BatchNormBackward'
TOLERANCES = [(torch.float32, 2e-6), (torch.float64, 1e-12)]


@pytest.fixture(autouse=True)
def for_all_sizes(monkeypatch):
    monkeypatch.setattr(batch_statistics, 'SMALLEST', 1)


def norm_and_input(dtype=torch.float32, shape=(4, 6, 7, 5), **settings):
    torch.manual_seed(0)
    norm = randomise_batchnorms(nn.BatchNorm2d(shape[1], **settings)).to(dtype).train()
    return norm, 3 * torch.randn(shape, dtype=dtype) + torch.randn(shape[1], 1, 1, dtype=dtype)


def error(ours, theirs):
    return ((ours.double() - theirs.double()).norm() / theirs.double().norm()).item()


def found_by(run, norm, x):
    """Output, gradients and buffers."""
    norm, x = copy.deepcopy(norm), x.clone().requires_grad_()
    y = run(norm, x)
    gradients = torch.autograd.grad(y.pow(3).sum(), [x, norm.weight, norm.bias])
    return [y, *gradients, *norm.buffers()]


def plain(norm, x):
    return norm(x)


@pytest.mark.parametrize(('dtype', 'tolerance'), TOLERANCES, ids=str)
@pytest.mark.parametrize(
    'settings',
    [dict(), dict(momentum=0.9), dict(eps=0.1), dict(shape=(2, 3, 1, 1), eps=1.0)],
    ids=str,
)
def test_outputs_gradients_and_statistics_are_those_of_batchnorm(dtype, tolerance, settings):
    norm, x = norm_and_input(dtype, **settings)
    ours, theirs = (found_by(run, norm, x) for run in (normed, plain))
    assert ours[0].grad_fn.name() == NODE
    assert ours[-1] == theirs[-1] == 1  # batches
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert error(a, b) < tolerance


def test_by_hand():
    """1 and 3 in a channel: mean 2, biased variance 1, unbiased 2."""
    norm = nn.BatchNorm2d(1, eps=0.0, momentum=0.5)
    y = normed(norm, torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))
    assert y.grad_fn.name() == NODE
    assert y.flatten().tolist() == [-1, 1]
    assert norm.running_mean.item() == 0.5 * 0 + 0.5 * 2
    assert norm.running_var.item() == 0.5 * 1 + 0.5 * 2


@pytest.mark.parametrize('mean', [0.0, 10.0, 1000.0])
@pytest.mark.parametrize('shape', [(8, 4, 56, 56), (1, 2, 640, 1280)], ids=str)
def test_neither_a_mean_far_from_zero_nor_a_large_map_costs_precision(shape, mean):
    """Against float64; PyTorch's own in float32, which sums in double precision, beside it."""
    norm, x = norm_and_input(shape=shape)
    x = x + mean
    exact = found_by(plain, copy.deepcopy(norm).double(), x.double())
    ours, theirs = (found_by(run, norm, x) for run in (normed, plain))
    for a, b, e in zip(ours[:4], theirs[:4], exact[:4], strict=True):
        assert error(a, e) < 2 * error(b, e) + 1e-6
    for a, e in zip(ours[4:], exact[4:], strict=True):
        assert error(a, e) < 1e-6


def test_a_wrong_variance_is_told_apart(monkeypatch):
    """Negative control of the comparison."""
    norm, x = norm_and_input()
    right = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, 'vector_norm', lambda *a, **k: right(*a, **k) * 1.001)
    ours, theirs = (found_by(run, norm, x) for run in (normed, plain))
    assert error(ours[0], theirs[0]) > 1e-4
    assert error(ours[-2], theirs[-2]) > 1e-4


def test_a_constant_channel_is_normalised_to_its_bias():
    norm, _ = norm_and_input()
    x = torch.full((2, 6, 4, 4), 7.0)
    assert torch.allclose(normed(norm, x), norm.bias[:, None, None].expand_as(x))


def test_second_derivatives_are_those_of_batchnorm():
    norm, x = norm_and_input(torch.float64)
    x.requires_grad_()
    found = []
    for run in (normed, plain):
        wanted = [x, norm.weight]
        first = torch.autograd.grad(run(norm, x).pow(3).sum(), wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append([*first, *second])
    assert all(error(a, b) < 1e-10 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    'frozen', [['weight'], ['bias'], ['weight', 'bias'], ['x'], ['x', 'weight', 'bias']], ids=str
)
def test_only_the_gradients_that_are_wanted_are_found(frozen):
    found = []
    for run in (normed, plain):
        norm, x = norm_and_input()
        x.requires_grad_('x' not in frozen)
        for name in set(frozen) - {'x'}:
            getattr(norm, name).requires_grad_(False)
        y = run(norm, x)
        if y.requires_grad:
            y.pow(3).sum().backward()
        found.append([y, *(t.grad for t in (x, norm.weight, norm.bias) if t.grad is not None)])
    assert len(found[0]) == len(found[1]) == 4 - len(frozen)
    assert all(error(a, b) < 2e-6 for a, b in zip(*found, strict=True))


class Other(nn.BatchNorm2d):
    def forward(self, x):
        return x + 1


def test_other_norms_and_states_take_the_module(monkeypatch):
    def never(*args):
        raise AssertionError('the quick way was taken')

    monkeypatch.setattr(batch_statistics._BatchNorm, 'apply', never)
    norm, x = norm_and_input()
    with pytest.raises(AssertionError, match='quick way'):
        normed(norm, x)  # negative control
    assert torch.equal(normed(Other(6), x), x + 1)
    normed(norm.eval(), x)
    for settings in (dict(affine=False), dict(track_running_stats=False), dict(momentum=None)):
        normed(nn.BatchNorm2d(6, **settings), x)
    norm.train()
    normed(norm, x.to(memory_format=torch.channels_last))
    normed(nn.Identity(), x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        normed(norm, x)
    normed(norm.to('meta'), x.to('meta'))
    norm, x = norm_and_input()
    seen = []
    norm.register_forward_hook(lambda *call: seen.append(call))
    normed(norm, x)
    assert len(seen) == 1


def test_it_is_batchnorm_where_it_does_not_pay(monkeypatch):
    monkeypatch.undo()
    for side, name in ((64, 'NativeBatchNormBackward0'), (128, NODE)):
        norm, x = norm_and_input(shape=(4, 4, side, side))
        assert normed(norm, x).grad_fn.name() == name


def test_bad_input_gets_pytorchs_error():
    norm, x = norm_and_input()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        normed(norm, x[:1, :, :1, :1].contiguous())
    with pytest.raises((ValueError, RuntimeError), match=r'running_mean should contain 3 elements'):
        normed(norm, x[:, :3].contiguous())


def test_functional_transforms_and_forward_mode_fall_back():
    norm, x = norm_and_input()
    tangents = []
    for run in (normed, plain):
        with forward_ad.dual_level():
            tangents.append(forward_ad.unpack_dual(run(norm, forward_ad.make_dual(x, x))).tangent)
    assert error(*tangents) < 1e-6
    norm.eval()  # torch.func refuses statistics that change
    assert torch.func.grad(lambda x: normed(norm, x).sum())(x).shape == x.shape
    assert torch.vmap(lambda x: normed(norm, x))(x[None]).shape == (1, *x.shape)


def test_a_block_gives_mmpretrains_statistics():
    from mmpretrain.models.backbones.repvgg import RepVGGBlock as Theirs

    torch.manual_seed(0)
    block, theirs = RepVGGBlock(8, 8).train(), Theirs(8, 8).train()
    theirs.load_state_dict(block.state_dict())
    for _ in range(3):
        x = torch.randn(4, 8, 9, 7)
        assert error(block(x), theirs(x)) < 1e-6
    named = dict(theirs.named_buffers())
    for name, ours in block.named_buffers():
        assert error(ours, named[name]) < 1e-6, name
