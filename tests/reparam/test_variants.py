"""The merging formulas of the variants of Table 7, one case worked by hand each."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmseg_repvgg.reparam.branches import pad_to_3x3
from mmseg_repvgg.reparam.variants import (
    dirac_kernel,
    identity_like,
    merge_before_norm,
    merge_identity_without_bn,
    merge_normed,
    trivial_kernel,
)

W3 = torch.arange(36.0).reshape(2, 2, 3, 3)
W1 = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)
W13 = torch.arange(1.0, 13.0).reshape(2, 2, 1, 3)
W31 = torch.arange(13.0, 25.0).reshape(2, 2, 3, 1)


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


# gamma/sigma is (2, 1), (1, 3), (4, 1/2); beta - mu gamma/sigma (-5, -5), (-2, -2), (-3.5, -1)
FIRST = norm([4.0, 2.0], [1.0, 0.0], [3.0, 5.0], [4.0, 4.0])
SECOND = norm([1.0, 6.0], [0.0, 1.0], [2.0, 1.0], [1.0, 4.0])
THIRD = norm([4.0, 1.0], [0.5, 0.0], [1.0, 2.0], [1.0, 4.0])


def assert_exact(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_identity_without_bn_adds_ones():
    kernel, bias = merge_identity_without_bn((W3, FIRST), (W1, SECOND), groups=1)
    expected = torch.stack([W3[0] * 2, W3[1]]).double()
    expected[0, 0, 1, 1] += 1 * 1 + 1  # the 1x1 kernel scaled by (1, 3), the identity by nothing
    expected[0, 1, 1, 1] += 1 * 2
    expected[1, 0, 1, 1] += 3 * 3
    expected[1, 1, 1, 1] += 3 * 4 + 1
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-7.0, -7.0], dtype=torch.float64))
    expected[:, :, 1, 1] -= torch.tensor([[1.0, 2.0], [9.0, 12.0]])
    kernel, bias = merge_identity_without_bn((W3, FIRST), None, groups=1)
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-5.0, -5.0], dtype=torch.float64))


def test_post_addition_bn_scales_the_sum():
    kernel, bias = merge_before_norm([W3, W1], True, FIRST, groups=1)
    expected = W3.double()
    expected[:, :, 1, 1] += torch.tensor([[1.0 + 1, 2.0], [3.0, 4.0 + 1]])
    expected[0] *= 2
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-5.0, -5.0], dtype=torch.float64))
    plain, _ = merge_before_norm([W3], False, FIRST, groups=1)
    assert_exact(plain, torch.stack([W3[0] * 2, W3[1]]).double())


def test_asymmetric_kernels_fall_on_the_middle_row_and_column():
    kernel, bias = merge_normed([(W3, FIRST), (W13, SECOND), (W31, THIRD)])
    expected = torch.stack([W3[0] * 2, W3[1]]).double()
    expected[0, :, 1, :] += W13[0, :, 0, :]  # 1x3: scaled by (1, 3)
    expected[1, :, 1, :] += 3 * W13[1, :, 0, :]
    expected[0, :, :, 1] += 4 * W31[0, :, :, 0]  # 3x1: scaled by (4, 1/2)
    expected[1, :, :, 1] += W31[1, :, :, 0] / 2
    assert_exact(kernel, expected)
    assert_exact(bias, torch.tensor([-10.5, -8.0], dtype=torch.float64))


def test_dirac_kernel_of_a_3_4_5_triangle():
    weight = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    weight[0, 0, 0, 0], weight[0, 1, 1, 1] = 3.0, 4.0  # norm 5
    weight[1, 0, 2, 2] = -7.0  # norm 7
    a = torch.tensor([2.0, 0.5], dtype=torch.float64)
    b = torch.tensor([10.0, 3.0], dtype=torch.float64)
    expected = torch.zeros_like(weight)
    expected[0, 0, 0, 0], expected[0, 1, 1, 1] = 6.0, 8.0
    expected[1, 0, 2, 2] = -3.0
    expected[0, 0, 1, 1] += 2.0
    expected[1, 1, 1, 1] += 0.5
    assert_exact(dirac_kernel(weight, a, b, groups=1), expected)


def test_trivial_kernel_is_w_plus_i():
    expected = W3.clone()
    expected[0, 0, 1, 1] += 1
    expected[1, 1, 1, 1] += 1
    assert torch.equal(trivial_kernel(W3, groups=1), expected)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('channels', [(8, 8), (8, 16), (16, 8), (12, 8)])
def test_the_identity_is_torchs_dirac(channels, groups):
    """PyTorch's initialization is what DiracNet's code takes."""
    weight = torch.randn(channels[1], channels[0] // groups, 3, 3)
    expected = nn.init.dirac_(torch.empty_like(weight), groups)
    assert torch.equal(identity_like(weight, groups), expected)
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
