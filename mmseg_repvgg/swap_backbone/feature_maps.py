"""Measure the channels and strides of a backbone's or neck's feature maps by running it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

SIZE = 512
"""Height and width in pixels of the image, unless the backbone sets ``img_size``."""
IMAGE_CASCADES = ('ICNet',)
"""Backbones that take the image at several scales."""


class CannotSwapError(ValueError):
    """The config cannot take this backbone; the text says why."""


@dataclass(frozen=True)
class FeatureMap:
    """A feature map: (N, channels, H / stride, W / stride) for images (N, 3, H, W)."""

    channels: int
    stride: int


def build_backbone(cfg: Mapping[str, Any]) -> nn.Module:
    """Build the backbone without pretrained weights, in eval mode, on the meta device.

    Raises:
        CannotSwapError: If it cannot be built here.
    """
    if cfg.get('type') in IMAGE_CASCADES:
        raise CannotSwapError(f'{cfg["type"]} takes several scaled images, which RepVGG does not')
    settings = {key: value for key, value in cfg.items() if key not in ('pretrained', 'init_cfg')}
    try:
        backbone = MODELS.build(settings)
    except Exception as error:  # other packages may raise anything
        raise CannotSwapError(
            f"the config's own backbone {cfg.get('type')} cannot be built, so its feature maps are "
            f'not known: {error}'
        ) from error
    backbone.eval()  # not chained: the train() of some OpenMMLab backbones returns None
    return backbone.to('meta')


def backbone_maps(backbone: nn.Module, cfg: Mapping[str, Any]) -> list[FeatureMap]:
    """The maps that a backbone of :func:`build_backbone` gives for an image of its ``img_size``.

    Raises:
        CannotSwapError: If it does not run, or does not give a list of feature maps.
    """
    size = cfg.get('img_size', SIZE)
    size = size if isinstance(size, int) else size[0]
    try:
        with torch.no_grad():
            outputs = backbone(_zeros(cfg.get('in_channels', 3), size))
    except Exception as error:  # other packages may raise anything
        raise CannotSwapError(
            f"the config's own backbone {cfg['type']} does not run on an image of {size}x{size}: "
            f'{error}'
        ) from error
    return _measure(outputs, size, cfg['type'])


def neck_maps(cfg: Mapping[str, Any], maps: Sequence[FeatureMap]) -> list[FeatureMap]:
    """The maps that a neck makes of ``maps``.

    Raises:
        CannotSwapError: If it does not run, or does not give a list of feature maps.
    """
    inputs = [_zeros(m.channels, SIZE // m.stride) for m in maps]
    try:
        neck = MODELS.build(dict(cfg)).to('meta')
        neck.eval()
        with torch.no_grad():
            outputs = neck(inputs)
    except Exception as error:  # other packages may raise anything
        raise CannotSwapError(f'the neck {cfg.get("type")} does not run: {error}') from error
    return _measure(outputs, SIZE, cfg['type'])


def _zeros(channels: int, size: int) -> Tensor:
    # meta: shapes without memory or arithmetic, whatever the size of the network
    return torch.zeros(1, channels, size, size, device='meta')


def _measure(outputs: Any, size: int, name: str) -> list[FeatureMap]:
    if isinstance(outputs, Tensor):
        raise CannotSwapError(f'{name} gives its heads one map, not a list of maps')
    if not all(isinstance(m, Tensor) and m.dim() == 4 for m in outputs):
        kinds = [type(m).__name__ for m in outputs]
        raise CannotSwapError(f'{name} gives its heads no feature maps (N, C, H, W) but {kinds}')
    return [FeatureMap(m.shape[1], max(size // m.shape[2], 1)) for m in outputs]
