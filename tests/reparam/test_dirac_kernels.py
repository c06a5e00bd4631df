"""The kernels of DiracNet and Trivial Re-param (Table 7), one case worked by hand each."""

import torch

from mmseg_repvgg.reparam.dirac_kernels import dirac_kernel, trivial_kernel

W3 = torch.arange(36.0).reshape(2, 2, 3, 3)


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
    found = dirac_kernel(weight, a, b, groups=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_trivial_kernel_is_w_plus_i():
    expected = W3.clone()
    expected[0, 0, 1, 1] += 1
    expected[1, 1, 1, 1] += 1
    assert torch.equal(trivial_kernel(W3, groups=1), expected)
