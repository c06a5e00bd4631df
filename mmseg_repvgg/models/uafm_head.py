"""UAFMHead: the decoder of PP-LiteSeg (Peng et al. 2022, arXiv 2204.02681) as an mmseg head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

from mmseg_repvgg.checks import check_sequence, is_integer
from mmseg_repvgg.reparam.open_size import has_open_size


class SPPM(nn.Module):
    """The simple pyramid pooling module: pooled maps are added, without the input (section 3.4).

    Args:
        in_channels: C_in.
        channels: Of the pooled maps and of the output.
        scales: Sides of the pooled maps.
        align_corners: Of the upsampling.
        **layers: ``conv_cfg``, ``norm_cfg`` and ``act_cfg`` of the layers.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        scales: Sequence[int] = (1, 2, 4),
        align_corners: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(scale), ConvModule(in_channels, channels, 1, **layers)
            )
            for scale in scales
        )
        self.conv = ConvModule(channels, channels, 3, padding=1, **layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, channels, H, W)."""
        maps = [_resized(stage(x), x, self.align_corners) for stage in self.stages]
        total = maps[0]
        for other in maps[1:]:
            total = total + other
        return self.conv(total)


class SpatialAttention(nn.Module):
    """The weight of each pixel, from mean and maximum over the channels of both maps (eq. 3)."""

    def __init__(self, channels: int, **layers: Any) -> None:
        super().__init__()
        self.conv1 = ConvModule(4, 2, 3, padding=1, **layers)
        self.conv2 = ConvModule(2, 1, 3, padding=1, **dict(layers, act_cfg=None))

    def forward(self, up: Tensor, low: Tensor) -> Tensor:
        """Twice (N, C, H, W) -> (N, 1, H, W), from 0 to 1."""
        maps = [part for x in (up, low) for part in (x.mean(1, True), x.amax(1, True))]
        return self.conv2(self.conv1(torch.cat(maps, dim=1))).sigmoid()


class ChannelAttention(nn.Module):
    """The weight of each channel, from mean and maximum over the pixels of both maps (eq. 4)."""

    def __init__(self, channels: int, **layers: Any) -> None:
        super().__init__()
        leaky = dict(layers, act_cfg=dict(type='LeakyReLU', negative_slope=0.01))
        self.conv1 = ConvModule(4 * channels, max(1, channels // 2), 1, **leaky)
        last = dict(layers, act_cfg=None)
        self.conv2 = ConvModule(max(1, channels // 2), channels, 1, **last)

    def forward(self, up: Tensor, low: Tensor) -> Tensor:
        """Twice (N, C, H, W) -> (N, C, 1, 1), from 0 to 1."""
        axes = (2, 3)
        parts = [part for x in (up, low) for part in (x.mean(axes, True), x.amax(axes, True))]
        return self.conv2(self.conv1(torch.cat(parts, dim=1))).sigmoid()


ATTENTIONS: dict[str, type[nn.Module]] = {
    'spatial': SpatialAttention,
    'channel': ChannelAttention,
}


class UAFM(nn.Module):
    """The unified attention fusion module (section 3.3): two maps to one of the larger's size.

    With a lateral conv of the larger map F_low and an upsampled smaller one F_up, the attention's
    weight ``w`` of both fuses them (eq. 2): ``conv(w F_up + (1 - w) F_low)``.

    Args:
        low_channels: Channels of the larger map.
        high_channels: Channels of the smaller map, and those in which both are fused.
        out_channels: Channels of the output.
        attention: ``'spatial'`` or ``'channel'``.
        lateral_kernel_size: Of the conv of the larger map.
        align_corners: Of the upsampling.
        **layers: ``conv_cfg``, ``norm_cfg`` and ``act_cfg`` of the layers.
    """

    def __init__(
        self,
        low_channels: int,
        high_channels: int,
        out_channels: int,
        attention: str = 'spatial',
        lateral_kernel_size: int = 3,
        align_corners: bool = False,
        **layers: Any,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        kernel_size, padding = lateral_kernel_size, lateral_kernel_size // 2
        self.lateral = ConvModule(
            low_channels, high_channels, kernel_size, padding=padding, **layers
        )
        self.attention = ATTENTIONS[attention](high_channels, **layers)
        self.conv = ConvModule(high_channels, out_channels, 3, padding=1, **layers)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(N, C_low, H, W) and (N, C_high, h, w) -> (N, C_out, H, W)."""
        low = self.lateral(low)
        up = _resized(high, low, self.align_corners)
        weight = self.attention(up, low)
        return self.conv(weight * up + (1 - weight) * low)


@MODELS.register_module()
class UAFMHead(BaseDecodeHead):
    """PP-LiteSeg's decoder: :class:`SPPM` on the smallest map, a :class:`UAFM` for every map.

    It is light, because maps are fused by adding, and because there are few channels where maps
    are large. The logits have the size of the first map. PP-LiteSeg-B has the default
    ``fusion_channels``, PP-LiteSeg-T has ``(32, 64, 128)``.

    Args:
        in_channels: Channels of the backbone's maps, from the largest to the smallest, such as
            those of strides 8, 16 and 32.
        channels: Of the last 3x3 conv, before the classifier.
        fusion_channels: Channels of the fused maps, in the order of ``in_channels``.
        pool_scales: Sides of the pooled maps of SPPM.
        attention: ``'spatial'`` or ``'channel'``.
        lateral_kernel_size: Of the convs of the backbone's maps: 3 as in the authors' code, or 1,
            which is much lighter for RepVGG's last map of 1280 channels or more.
        **kwargs: The other arguments of mmseg's ``BaseDecodeHead``: ``num_classes``, ``in_index``,
            ``norm_cfg``, ``align_corners``, ``loss_decode``, ...

    Raises:
        ValueError: If an argument is out of range, or the lists have different lengths.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        in_index: Sequence[int] = (0, 1, 2),
        fusion_channels: Sequence[int] = (64, 96, 128),
        pool_scales: Sequence[int] = (1, 2, 4),
        attention: str = 'spatial',
        lateral_kernel_size: int = 3,
        **kwargs: Any,
    ) -> None:
        lists = dict(in_channels=in_channels, in_index=in_index, fusion_channels=fusion_channels)
        sizes = {name: len(check_sequence(name, values)) for name, values in lists.items()}
        if len(set(sizes.values())) > 1 or len(fusion_channels) < 2:
            given = ', '.join(f'{name}={list(values)}' for name, values in lists.items())
            raise ValueError(f'{given} must have one value per feature map, at least two each')
        scales = check_sequence('pool_scales', pool_scales)
        numbers = (*in_channels, *fusion_channels, *scales, channels)
        if not scales or not all(is_integer(number, 1) for number in numbers):
            raise ValueError(
                f'in_channels={list(in_channels)}, fusion_channels={list(fusion_channels)}, '
                f'pool_scales={list(scales)} and channels={channels!r} of UAFMHead must be '
                'integers of at least 1'
            )
        if attention not in ATTENTIONS:
            raise ValueError(
                f'unknown attention {attention!r}; choose from {", ".join(ATTENTIONS)}'
            )
        if lateral_kernel_size not in (1, 3):
            raise ValueError(f'lateral_kernel_size={lateral_kernel_size!r} must be 1 or 3')
        super().__init__(
            list(in_channels),
            channels,
            in_index=list(in_index),
            input_transform='multiple_select',
            **kwargs,
        )
        layers: Mapping[str, Any] = dict(
            conv_cfg=self.conv_cfg, norm_cfg=self.norm_cfg, act_cfg=self.act_cfg
        )
        last = fusion_channels[-1]
        self.sppm = SPPM(in_channels[-1], last, scales, self.align_corners, **layers)
        self.fusions = nn.ModuleList(
            UAFM(low, high, out, attention, lateral_kernel_size, self.align_corners, **layers)
            for low, high, out in zip(
                in_channels, (*fusion_channels[1:], last), fusion_channels, strict=True
            )
        )
        self.conv = ConvModule(fusion_channels[0], channels, 3, padding=1, **layers)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps (N, C, H, W) of the backbone -> logits (N, classes, H, W) of the first one's size.

        Raises:
            ValueError: If the backbone returns too few maps, or they do not get smaller.
        """
        if len(inputs) <= max(self.in_index):
            raise ValueError(
                f'UAFMHead reads in_index={self.in_index}, and the backbone returns {len(inputs)} '
                'feature maps: give it as many out_indices'
            )
        maps = self._transform_inputs(inputs)
        sizes = [tuple(x.shape[2:]) for x in maps]
        # a graph for all sizes cannot compare them
        if not has_open_size(maps[0]) and any(
            a[0] < b[0] or a[1] < b[1] for a, b in pairwise(sizes)
        ):
            raise ValueError(
                f'UAFMHead got maps of {sizes} pixels; in_index must go from the largest to the '
                'smallest'
            )
        x = self.sppm(maps[-1])
        for low, fusion in zip(maps[::-1], list(self.fusions)[::-1], strict=True):
            x = fusion(low, x)
        return self.cls_seg(self.conv(x))


def _resized(x: Tensor, like: Tensor, align_corners: bool) -> Tensor:
    """``x`` (N, C, h, w) at the size of ``like``, bilinearly."""
    if not has_open_size(like) and x.shape[2:] == like.shape[2:]:
        return x
    return resize(x, like.shape[2:], mode='bilinear', align_corners=align_corners)
