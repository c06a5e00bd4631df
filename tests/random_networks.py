"""What the property tests draw: tiny architectures and their settings, heads, conv-BN chains."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.models.arch import ARCHS
from mmseg_repvgg.reparam import REWRITES
from tests.common import randomise_batchnorms

DTYPES = st.sampled_from([torch.bfloat16, torch.float32, torch.float64])
SIDES = st.integers(5, 33) | st.integers(1, 4)
SEEDS = st.integers(0, 2**16)


@st.composite
def backbone_settings(draw: st.DrawFn, squeeze: bool = True) -> dict[str, Any]:
    """Arguments of a DilatedRepVGG of 4 to 32 channels: any depth, stride, dilation and groups."""
    stages = draw(st.sampled_from([3, 2, 1]))  # not a list of any length: those tend to be short
    depths = draw(st.lists(st.sampled_from([2, 3, 1]), min_size=stages, max_size=stages))
    factor = draw(st.sampled_from([0.0625, 0.125]))  # 4 or 8 channels, doubled in every stage
    # of the layers after the stem, whose channels 2 and 4 divide
    layers = draw(st.sets(st.integers(1, sum(depths)), max_size=3))
    se_cfg = dict(ratio=2, divisor=1) if squeeze and draw(st.booleans()) else None
    arch = dict(
        num_blocks=depths,
        width_factor=[factor] * stages,
        group_layer_map={layer: draw(st.sampled_from([2, 4])) for layer in sorted(layers)},
        se_cfg=se_cfg,
        stem_channels=draw(st.sampled_from([4, 64])),
    )
    dilation = st.sampled_from([2, 4, 3, 1])
    return dict(
        arch=arch,
        num_stages=stages,
        strides=draw(st.lists(st.integers(1, 2), min_size=stages, max_size=stages)),
        # one a stage, or one a layer
        dilations=[draw(dilation | st.lists(dilation, min_size=n, max_size=n)) for n in depths],
        out_indices=list(range(stages)),
    )


@st.composite
def architecture_rows(draw: st.DrawFn) -> dict[str, Any]:
    """A row of ARCHS at an eighth of its width, strides and dilations, rewrites to apply."""
    name = draw(st.sampled_from(list(ARCHS)))
    row = ARCHS[name]
    arch = dict(
        num_blocks=row.num_blocks,
        width_factor=[factor / 8 for factor in row.width_factor],
        group_layer_map=row.group_layer_map,
        se_cfg=row.se_cfg and dict(row.se_cfg, ratio=4),  # of 20 channels a 16th is 1
        stem_channels=row.stem_channels,
    )
    rewrites = draw(st.sampled_from([['branches'], ['branches', 'dilation'], list(REWRITES)]))
    settings = dict(
        arch=arch,
        strides=(2, 2, *draw(st.sampled_from([(2, 2), (1, 1), (2, 1)]))),
        dilations=(1, 1, draw(st.integers(1, 2)), draw(st.sampled_from([1, 2, 4]))),
        out_indices=(0, 1, 2, 3),
    )
    return dict(name=name, settings=settings, rewrites=rewrites)


def build_backbone(settings: dict[str, Any], seed: int, dtype: torch.dtype) -> DilatedRepVGG:
    """The backbone with weights of the seed and the statistics of a trained one, in eval mode."""
    torch.manual_seed(seed)
    return randomise_batchnorms(DilatedRepVGG(**settings), seed).to(dtype)


@st.composite
def conv_bn_chains(draw: st.DrawFn) -> nn.Sequential:
    """Some ConvModules, and bare conv-BN pairs, after each other; 4 channels in and out."""
    from mmcv.cnn import ConvModule

    torch.manual_seed(draw(SEEDS))
    parts: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, dilation = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2))
        settings = dict(
            kernel_size=kernel,
            stride=draw(st.integers(1, 2)),
            padding=dilation * (kernel // 2),
            dilation=dilation,
            groups=draw(st.sampled_from([1, 2, 4])),
            bias=draw(st.booleans()),
        )
        if draw(st.booleans()):
            norm_cfg = dict(type=draw(st.sampled_from(['BN', 'SyncBN'])))
            order = draw(st.sampled_from([('conv', 'norm', 'act'), ('act', 'conv', 'norm')]))
            parts.append(ConvModule(4, 4, norm_cfg=norm_cfg, order=order, **settings))
        else:
            parts += [nn.Conv2d(4, 4, **settings), nn.BatchNorm2d(4), nn.ReLU()]
    return randomise_batchnorms(nn.Sequential(*parts)).double()


@st.composite
def pyramid_heads(draw: st.DrawFn) -> nn.Module:
    """A PSPHead over maps of 6 channels."""
    init_default_scope('mmseg')
    torch.manual_seed(draw(SEEDS))
    scales = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    head = MODELS.build(
        dict(
            type='PSPHead',
            in_channels=6,
            in_index=0,
            channels=draw(st.integers(1, 5)),
            num_classes=3,
            pool_scales=tuple(scales),
            norm_cfg=dict(type='BN'),
            align_corners=draw(st.booleans()),
        )
    )
    return randomise_batchnorms(head).double()
