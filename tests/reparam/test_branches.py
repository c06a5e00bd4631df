"""Branches -> one 3x3 conv: by hand, on every kind of block, on every architecture."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.models import ARCHS, DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.models.variants import QARepVGGBlock
from mmseg_repvgg.reparam.batchnorm import fold_batchnorm
from mmseg_repvgg.reparam.branches import (
    fuse_branches,
    identity_kernel,
    merge_branches,
    pad_to_3x3,
)
from mmseg_repvgg.reparam.equivalence import EquivalenceError, compare, require_equal, tolerance_of
from mmseg_repvgg.reparam.rewrites import deployed_copy
from tests.checkpoint.parity import QUICK
from tests.common import TINY, randomise_batchnorms, segmentor_cfg


def norm(weight, bias, mean, var):
    """A BatchNorm over two channels with eps 0."""
    bn = nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        for tensor, values in zip(
            (bn.weight, bn.bias, bn.running_mean, bn.running_var),
            (weight, bias, mean, var),
            strict=True,
        ):
            tensor.copy_(torch.tensor(values))
    return bn


W3 = torch.arange(36.0).reshape(2, 2, 3, 3)
W1 = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
W13 = torch.arange(1.0, 13.0).reshape(2, 2, 1, 3)
W31 = torch.arange(13.0, 25.0).reshape(2, 2, 3, 1)
ONES = identity_kernel(W3, groups=1)

# gamma/sigma is (2, 1), (1, 3), (4, 1/2); beta - mu gamma/sigma (-5, -5), (-2, -2), (-3.5, -1)
FIRST = norm([4.0, 2.0], [1.0, 0.0], [3.0, 5.0], [4.0, 4.0])
SECOND = norm([1.0, 6.0], [0.0, 1.0], [2.0, 1.0], [1.0, 4.0])
THIRD = norm([4.0, 1.0], [0.5, 0.0], [1.0, 2.0], [1.0, 4.0])


def assert_exact(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_two_channels_worked_by_hand():
    """Figure 4 with numbers: gamma/sigma is (2, 1), (1, 3) and (4, 1/2)."""
    kernel, bias = merge_branches([(W3, FIRST), (W1, SECOND), (ONES, THIRD)])
    expected = torch.stack([W3[0] * 2, W3[1] * 1]).double()
    expected[0, 0, 1, 1] += 1 * 1 + 4  # the 1x1 kernel scaled by 1, the identity by 4
    expected[0, 1, 1, 1] += 1 * 2
    expected[1, 0, 1, 1] += 3 * 3
    expected[1, 1, 1, 1] += 3 * 4 + 0.5
    torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-14)
    # beta - mu gamma / sigma, summed: (1 - 6) + (0 - 2) + (0.5 - 4); (0 - 5) + (1 - 3) + (0 - 1)
    torch.testing.assert_close(
        bias, torch.tensor([-10.5, -8.0], dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_identity_without_bn_adds_ones():
    kernel, bias = merge_branches([(W3, FIRST), (W1, SECOND), (ONES, nn.Identity())])
    expected = torch.stack([W3[0] * 2, W3[1]]).double()
    expected[0, 0, 1, 1] += 1 * 1 + 1  # the 1x1 kernel scaled by (1, 3), the identity by nothing
    expected[0, 1, 1, 1] += 1 * 2
    expected[1, 0, 1, 1] += 3 * 3
    expected[1, 1, 1, 1] += 3 * 4 + 1
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-7.0, -7.0], dtype=torch.float64))
    expected[:, :, 1, 1] -= torch.tensor([[1.0, 2.0], [9.0, 12.0]])
    kernel, bias = merge_branches([(W3, FIRST), (ONES, nn.Identity())])
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-5.0, -5.0], dtype=torch.float64))


def without_norms(*weights):
    """Branches without a BatchNorm, and one after the addition."""
    return fold_batchnorm(*merge_branches([(w, nn.Identity()) for w in weights]), FIRST)


def test_post_addition_bn_scales_the_sum():
    kernel, bias = without_norms(W3, W1, ONES)
    expected = W3.double()
    expected[:, :, 1, 1] += torch.tensor([[1.0 + 1, 2.0], [3.0, 4.0 + 1]])
    expected[0] *= 2
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-5.0, -5.0], dtype=torch.float64))
    plain, _ = without_norms(W3)
    assert_exact(plain, torch.stack([W3[0] * 2, W3[1]]).double())


def test_qa_repvgg_scales_the_3x3_branch_and_then_the_sum():
    """bn(bn(conv3x3(x)) + conv1x1(x) + x), by hand."""
    inner = merge_branches([(W3, SECOND), (W1, nn.Identity()), (ONES, nn.Identity())])
    kernel, bias = fold_batchnorm(*inner, FIRST)
    expected = torch.stack([W3[0] * 1, W3[1] * 3]).double()  # gamma/sigma of the 3x3 branch
    expected[:, :, 1, 1] += torch.tensor([[1.0 + 1, 2.0], [3.0, 4.0 + 1]])
    expected[0] *= 2  # of the norm after the addition: (2, 1)
    assert_exact(kernel, expected)
    # the bias of the branch, (-2, -2), scaled by (2, 1), and (-5, -5) of the norm after it
    assert_exact(bias, torch.tensor([-9.0, -7.0], dtype=torch.float64))

    block = QARepVGGBlock(2, 2)
    block.branch_3x3.conv.weight.data, block.branch_1x1.conv.weight.data = W3, W1
    block.branch_3x3.norm, block.norm = SECOND, FIRST
    kernel, bias = block.get_equivalent_kernel_bias()
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-9.0, -7.0], dtype=torch.float64))


def test_asymmetric_kernels_fall_on_the_middle_row_and_column():
    kernel, bias = merge_branches([(W3, FIRST), (W13, SECOND), (W31, THIRD)])
    expected = torch.stack([W3[0] * 2, W3[1]]).double()
    expected[0, :, 1, :] += W13[0, :, 0, :]  # 1x3: scaled by (1, 3)
    expected[1, :, 1, :] += 3 * W13[1, :, 0, :]
    expected[0, :, :, 1] += 4 * W31[0, :, :, 0]  # 3x1: scaled by (4, 1/2)
    expected[1, :, :, 1] += W31[1, :, :, 0] / 2
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-10.5, -8.0], dtype=torch.float64))


def test_the_identity_kernel_of_groups_is_the_identity():
    x = torch.randn(1, 6, 4, 4, dtype=torch.float64)
    for groups in (1, 2, 3, 6):
        kernel = identity_kernel(x.new_empty(6, 6 // groups, 3, 3), groups)
        assert torch.equal(F.conv2d(x, kernel, padding=1, groups=groups), x)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('channels', [(8, 8), (8, 16), (16, 8), (12, 8)])
def test_the_identity_is_torchs_dirac(channels, groups):
    """PyTorch's initialization is what DiracNet's code takes."""
    weight = torch.randn(channels[1], channels[0] // groups, 3, 3)
    expected = nn.init.dirac_(torch.empty_like(weight), groups)
    assert torch.equal(identity_kernel(weight, groups), expected)
    if channels[0] == channels[1]:
        x = torch.randn(1, channels[0], 5, 6)
        assert torch.equal(F.conv2d(x, expected, padding=1, groups=groups), x)


def test_padding_keeps_what_a_small_kernel_computes():
    x = torch.randn(1, 3, 7, 8, dtype=torch.float64)
    for size in ((1, 1), (1, 3), (3, 1), (3, 3)):
        kernel = torch.randn(4, 3, *size, dtype=torch.float64)
        padding = (size[0] // 2, size[1] // 2)
        expected = F.conv2d(x, kernel, padding=padding)
        torch.testing.assert_close(F.conv2d(x, pad_to_3x3(kernel), padding=1), expected)
        if size != (3, 3) and size != (1, 1):  # negative control: the other direction
            turned = pad_to_3x3(kernel).transpose(2, 3)
            assert (F.conv2d(x, turned, padding=1) - expected).abs().max() > 0.1


KINDS = [
    (c_out, stride, groups, dilation, se)
    for c_out, stride, groups, dilation, se in itertools.product(
        (8, 12), (1, 2), (1, 2, 4), (1, 2, 4), (None, dict(ratio=4, divisor=1))
    )
]


@pytest.mark.parametrize('norm_type', ['BN', 'SyncBN'])
@pytest.mark.parametrize(('c_out', 'stride', 'groups', 'dilation', 'se'), KINDS)
def test_every_kind_of_block_fuses_exactly(c_out, stride, groups, dilation, se, norm_type):
    block = RepVGGBlock(
        8,
        c_out,
        stride=stride,
        groups=groups,
        dilation=dilation,
        se_cfg=se,
        norm_cfg=dict(type=norm_type),
    )
    randomise_batchnorms(block).double()
    assert (block.branch_norm is not None) == (c_out == 8 and stride == 1)
    fused, counts = deployed_copy(block, ['branches'])
    assert counts == {'branches': 1}
    assert not [n for n, _ in fused.named_modules() if 'norm' in n or '1x1' in n or '3x3' in n]
    for size in ((9, 14), (5, 5)):
        x = torch.randn(2, 8, *size, dtype=torch.float64)
        assert compare(block, fused, x).max_rel < 1e-12


@pytest.mark.parametrize(
    ('dtype', 'tolerance'),
    [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 5e-2)],
)
def test_every_dtype_is_fused_through_float64(dtype, tolerance):
    block = randomise_batchnorms(RepVGGBlock(8, 8, dilation=2)).to(dtype)
    fused, _ = deployed_copy(block, ['branches'])
    assert fused.branch_reparam.weight.dtype == dtype
    exact, _ = block.double().get_equivalent_kernel_bias()
    # the only rounding is the last cast
    assert torch.equal(fused.branch_reparam.weight, exact.to(dtype))
    x = torch.randn(1, 8, 7, 7).to(dtype)
    assert compare(block.to(dtype), fused, x).max_rel < tolerance


def test_fusing_keeps_mode_device_and_random_state():
    model = DilatedRepVGG(TINY).train()
    state = torch.get_rng_state()
    assert fuse_branches(model) == 10
    assert torch.equal(torch.get_rng_state(), state)
    assert model.stem.branch_reparam.training


def test_fusing_twice_is_fusing_once():
    model = randomise_batchnorms(DilatedRepVGG(TINY))
    assert fuse_branches(model) == 10
    once = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert fuse_branches(model) == 0
    model.switch_to_deploy()
    assert list(model.state_dict()) == list(once)
    assert all(torch.equal(once[n], t) for n, t in model.state_dict().items())


def test_a_model_without_blocks_is_an_error():
    with pytest.raises(ValueError, match='Sequential holds no RepVGG block'):
        fuse_branches(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))


def test_statistics_that_cannot_be_fused_are_named():
    block = RepVGGBlock(4, 4)
    block.branch_1x1.norm.running_var[2] = -1.0
    with pytest.raises(ValueError, match='has the value -1; it must be positive'):
        block.switch_to_deploy()
    assert hasattr(block, 'branch_3x3')
    assert not block.deploy
    block.branch_1x1.norm.running_var[2] = 1.0
    block.branch_3x3.conv.weight.data[0, 0, 0, 0] = float('nan')
    with pytest.raises(ValueError, match='NaN or infinite weights'):
        block.switch_to_deploy()
    with pytest.raises(ValueError, match='track_running_stats=False'):
        RepVGGBlock(4, 4, norm_cfg=dict(type='BN', track_running_stats=False)).switch_to_deploy()


def test_a_failed_fuse_leaves_the_model_as_it_was():
    model = DilatedRepVGG(TINY).eval()
    model.stage_3[1].branch_1x1.norm = nn.BatchNorm2d(16, track_running_stats=False)
    modules = list(model.modules())
    for fuse in (model.switch_to_deploy, lambda: fuse_branches(model)):
        with pytest.raises(ValueError, match='track_running_stats=False'):
            fuse()
        assert list(model.modules()) == modules
        assert not model.deploy


def test_a_kernel_past_the_range_of_half_precision_is_refused():
    block = RepVGGBlock(8, 8).eval()
    with torch.no_grad():  # 2 * 128 / 2**-10 = 2**18
        block.branch_3x3.conv.weight.fill_(2.0)
        block.branch_3x3.norm.running_var.fill_(2**-20)
        block.branch_3x3.norm.weight.fill_(128.0)
        block.branch_3x3.norm.eps = 0.0
    block.half()
    with pytest.raises(
        ValueError, match=r'above the largest torch.float16, 6.55e\+04: fuse the mod'
    ):
        block.switch_to_deploy()
    assert not block.deploy
    block.float().switch_to_deploy()
    assert block.deploy


@pytest.mark.parametrize('fuse', [fuse_branches, lambda model: model.backbone.switch_to_deploy()])
def test_training_weights_load_into_a_backbone_fused_in_place(fuse):
    init_default_scope('mmseg')
    cfg = segmentor_cfg(TINY, (8, 8, 16, 32, 64))
    training = randomise_batchnorms(MODELS.build(cfg))
    fused = MODELS.build(cfg).eval()
    fuse(fused)
    assert fused.backbone.deploy
    fused.load_state_dict(training.state_dict())
    assert compare(training, fused, torch.randn(1, 3, 65, 65)).max_rel < 1e-4


def test_the_equivalent_kernel_is_differentiable():
    """The authors' custom L2 penalty is its squared norm."""
    block = RepVGGBlock(4, 4).double()
    kernel, bias = block.get_equivalent_kernel_bias()
    (kernel.sum() + bias.sum()).backward()
    # eps aside, gamma / sigma is 1: each tap of the 3x3 kernel enters the sum once
    expected = torch.full_like(block.branch_3x3.conv.weight, (1 + 1e-5) ** -0.5)
    torch.testing.assert_close(block.branch_3x3.conv.weight.grad, expected)
    assert block.branch_norm.bias.grad.tolist() == [1.0] * 4


def break_tap(block):
    block.branch_reparam.weight.data = block.branch_reparam.weight.data.roll(1, dims=3)


def break_bias(block):
    block.branch_reparam.bias.data.zero_()


def drop_branch(name):
    def broken(block):
        norm_of_branch = block.branch_norm if name == 'branch_norm' else getattr(block, name).norm
        norm_of_branch.weight.data.zero_()
        norm_of_branch.bias.data.zero_()
        block.switch_to_deploy()

    return broken


@pytest.mark.parametrize(
    'fault',
    [
        break_tap,
        break_bias,
        drop_branch('branch_1x1'),
        drop_branch('branch_norm'),
        drop_branch('branch_3x3'),
    ],
    ids=['one tap off', 'no bias', 'no 1x1', 'no identity', 'no 3x3'],
)
def test_one_wrong_block_of_a_segmentor_is_caught(fault):
    """Negative control: the check that passes above refuses one wrong block in ten."""
    init_default_scope('mmseg')
    model = randomise_batchnorms(MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64))))
    good, _ = deployed_copy(model, ['branches', 'batchnorm'])
    x = torch.randn(1, 3, 65, 65)
    require_equal(compare(model, good, x), tolerance_of(model), 'test')
    bad, _ = deployed_copy(model, ['branches', 'batchnorm'])
    if fault in (break_tap, break_bias):
        fault(bad.backbone.stage_3[1])
    else:
        half, _ = deployed_copy(model, ['batchnorm'])
        fault(half.backbone.stage_3[1])
        fuse_branches(half)
        bad = half
    with pytest.raises(EquivalenceError, match='not equal to the original: largest difference'):
        require_equal(compare(model, bad, x), tolerance_of(model), 'test')


@pytest.mark.parametrize(
    'name',
    [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in ARCHS],
)
def test_fused_logits_of_every_architecture(name):
    init_default_scope('mmseg')
    widths = ARCHS[name].widths
    model = randomise_batchnorms(MODELS.build(segmentor_cfg(name, widths)))
    fused, counts = deployed_copy(model, ['branches', 'batchnorm'])
    layers = {'A': 22, 'B': 28, 'D': 48, 'L': 48}[name[0]]
    assert counts == {'branches': layers, 'batchnorm': 6}  # 4 pools, bottleneck, auxiliary conv
    found = compare(model, fused, torch.randn(1, 3, 65, 65))
    assert found.max_rel <= 1e-4
    assert found.argmax_agreement > 0.99
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
