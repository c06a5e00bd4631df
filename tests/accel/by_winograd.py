"""What the tests of Winograd share."""

import pytest

from mmseg_repvgg.accel import nnpack, use_winograd

ROUNDING = 5e-5  # relative, float32

needs_nnpack = pytest.mark.skipif(not nnpack.is_available(), reason='PyTorch without NNPACK')


def gap(actual, expected):
    """The largest difference, relative."""
    return (actual - expected).abs().max() / expected.abs().max()


def use(module):
    """``module`` with its 3x3 convs by Winograd, in eval mode."""
    assert use_winograd(module) >= 1
    return module.eval()
