"""Squeeze-excitation: RepVGG-D2se has it before every ReLU, RepVGGplus-L2pse after it."""

from __future__ import annotations

from mmcv.cnn import ConvModule
from torch import Tensor, nn


class SqueezeExcitation(nn.Module):
    """Squeeze-excitation with the parameter names and arithmetic of mmpretrain's ``SELayer``.

    Args:
        channels: Channels of the input.
        ratio: Reduction of the squeeze.
        divisor: The squeezed width is rounded to the nearest multiple of this.
    """

    def __init__(self, channels: int, ratio: int = 16, divisor: int = 8) -> None:
        super().__init__()
        squeezed = max(divisor, int(channels // ratio + divisor / 2) // divisor * divisor)
        if squeezed < 0.9 * (channels // ratio):  # never lose more than a tenth by rounding
            squeezed += divisor
        self.conv1 = ConvModule(channels, squeezed, 1, act_cfg=dict(type='ReLU'))
        self.conv2 = ConvModule(squeezed, channels, 1, act_cfg=dict(type='Sigmoid'))

    def forward(self, x: Tensor) -> Tensor:
        """Scale every channel of ``x`` (N, C, H, W)."""
        return x * self.conv2(self.conv1(x.mean((2, 3), keepdim=True)))
