"""The comparison itself: what it measures, restores and refuses."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import equivalence
from mmseg_repvgg.reparam.equivalence import (
    Difference,
    EquivalenceError,
    compare,
    difference,
    random_images,
    require_equal,
    tolerance_of,
)
from mmseg_repvgg.reparam.rewrites import apply_rewrites, check_names, deployed_copy, describe
from tests.common import TINY, randomise_batchnorms


def test_the_numbers_are_those_worked_by_hand():
    before = [torch.tensor([[[[1.0, 5.0]], [[2.0, -8.0]]]]), torch.tensor([10.0])]
    after = [torch.tensor([[[[2.5, 5.0]], [[2.0, -8.0]]]]), torch.tensor([9.0])]
    found = difference(before, after)
    # gaps 1.5 of scale 8 and 1 of scale 10; the first of two pixels changes its class
    assert found == Difference(max_abs=1.5, max_rel=1.5 / 8, argmax_agreement=0.5)
    assert str(found).startswith('largest difference 1.5 (relative 0.188), argmax agreement 50.0')
    assert found.merge(Difference(2.0, 0.1, 0.9)) == Difference(2.0, 1.5 / 8, 0.5)


def test_nan_after_is_never_equal():
    found = difference([torch.ones(1, 2)], [torch.tensor([[1.0, float('nan')]])])
    with pytest.raises(EquivalenceError):
        require_equal(found, 1e9, 'test')
    with pytest.raises(EquivalenceError):
        require_equal(Difference(0.0, float('nan'), 1.0), 1e9, 'test')


def test_modes_gradients_and_random_state_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.9)).train()
    model[1].eval()
    other = nn.Sequential(nn.Conv2d(3, 4, 1))
    other.load_state_dict({k[2:] and f'0.{k[2:]}': v for k, v in model[:1].state_dict().items()})
    state = torch.get_rng_state()
    images = random_images(model)
    assert images.shape == (1, 3, 129, 193)
    compare(model, other, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model] == [True, False, True]
    assert model[0].weight.grad is None


def test_shapes_and_infinite_originals_are_refused():
    a, b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1)
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(
        EquivalenceError, match=r'were \[\(1, 4, 4, 4\)\] and are \[\(1, 5, 4, 4\)\]'
    ):
        compare(a, b, x)
    a.weight.data[0] = float('inf')
    with pytest.raises(EquivalenceError, match='the original model gives NaN or infinite'):
        compare(a, a, x)


def test_models_that_draw_random_numbers_draw_the_same():
    class Drawing(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) + torch.rand(x.shape)

    a, b, x = Drawing(2, 2, 1), Drawing(2, 2, 1), torch.randn(1, 2, 4, 4)
    state = torch.get_rng_state()
    assert compare(a, b, x).max_abs > 1e-3  # other weights
    b.load_state_dict(a.state_dict())
    assert compare(a, b, x).max_abs == 0
    assert torch.equal(torch.get_rng_state(), state)  # training goes on as without the check


def test_the_tolerance_follows_the_dtype():
    model = nn.Conv2d(1, 1, 1)
    assert tolerance_of(model) == 1e-4
    assert tolerance_of(model.double()) < 1e-4 < tolerance_of(model.half())


def test_rewrites_are_chosen_by_name_in_a_fixed_order():
    assert check_names(['batchnorm', 'branches', 'branches']) == ('branches', 'batchnorm')
    for wrong in (['fft'], ['branches', 'fuse'], []):
        with pytest.raises(ValueError, match='name at least one of branches, batchnorm'):
            check_names(wrong)
    with pytest.raises(ValueError, match='holds no RepVGG block'):
        apply_rewrites(nn.Conv2d(1, 1, 1), ['branches'])
    assert describe({'branches': 2, 'batchnorm': 0}) == '2 blocks'
    assert describe({'branches': 0}) == '0 blocks'


def test_a_copy_runs_its_own_weights_though_the_original_was_compiled():
    """mmengine compiles by putting a function instead of a method of the instance."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    randomise_batchnorms(model)
    original = model.forward
    model.forward = lambda x: original(x)
    copied, _ = deployed_copy(model, ['batchnorm'])
    copied[0].weight.data.zero_()
    copied[0].bias.data.zero_()
    assert copied(torch.randn(1, 3, 2, 2)).abs().max() == 0
    assert 'forward' in vars(model)


def round_to_tf32(x):
    """The 10 bits of the mantissa that TF32 keeps, rounded to nearest even."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def cudnn_of_ampere(monkeypatch):
    """CPU convs compute as cuDNN's on recent GPUs: in TF32 unless it is switched off."""
    conv2d = nn.functional.conv2d

    def in_tf32(x, weight, *args, **kwargs):
        if x.dtype == torch.float32 and torch.backends.cudnn.conv.fp32_precision != 'ieee':
            x, weight = round_to_tf32(x), round_to_tf32(weight)
        return conv2d(x, weight, *args, **kwargs)

    monkeypatch.setattr(nn.functional, 'conv2d', in_tf32)
    torch.backends.cudnn.conv.fp32_precision = 'tf32'


def test_models_are_compared_without_tf32_and_autocast(cudnn_of_ampere, monkeypatch):
    model = randomise_batchnorms(DilatedRepVGG(TINY))
    fused, _ = deployed_copy(model, ['branches'])
    images = random_images(model)
    with torch.autocast('cpu', torch.bfloat16):
        found = compare(model, fused, images)
    assert found.max_rel < 1e-5
    assert torch.backends.cudnn.conv.fp32_precision == 'tf32'  # put back
    # negative control: what the comparison would find as PyTorch computes by default
    monkeypatch.setattr(equivalence, '_true_float32', nullcontext)
    assert compare(model, fused, images).max_rel > tolerance_of(model)


@pytest.mark.parametrize(
    'choose',
    [
        lambda: None,
        lambda: torch.set_float32_matmul_precision('high'),
        lambda: torch.set_float32_matmul_precision('medium'),
        lambda: setattr(torch.backends.cuda.matmul, 'fp32_precision', 'tf32'),
        lambda: setattr(torch.backends.cudnn, 'allow_tf32', False),
        lambda: setattr(torch.backends.cudnn.conv, 'fp32_precision', 'ieee'),  # mixed
        lambda: setattr(torch.backends.mkldnn.conv, 'fp32_precision', 'bf16'),
    ],
)
def test_the_users_choice_of_precision_is_put_back(choose):
    kinds = [
        torch.backends.cudnn.conv,
        torch.backends.cudnn.rnn,
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.conv,
        torch.backends.mkldnn.matmul,
    ]
    choose()
    state = [kind.fp32_precision for kind in kinds]
    is_mixed = equivalence._is_tf32_mixed()
    with pytest.raises(KeyError), equivalence._true_float32():
        assert {kind.fp32_precision for kind in kinds} == {'ieee'}
        if not is_mixed:
            with torch.backends.cudnn.flags(enabled=False):  # as some models do
                pass
        raise KeyError  # an exception is no exception
    assert [kind.fp32_precision for kind in kinds] == state
    assert equivalence._is_tf32_mixed() == is_mixed
