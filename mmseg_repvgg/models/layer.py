"""The parts of a block: the geometry of a layer, its convs, and conv-BatchNorm."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmcv.cnn import build_norm_layer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_repvgg.checks import check_layer_cfg, is_integer


@dataclass(frozen=True)
class Layer:
    """The geometry of one 3x3 layer of the backbone.

    Raises:
        ValueError: On a number that is out of range.
    """

    in_channels: int
    out_channels: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ('stride', 'dilation', 'groups'):
            value = getattr(self, name)
            if not is_integer(value, 1):
                raise ValueError(
                    f'{name}={value!r} of a RepVGG block must be an integer, at least 1'
                )
        if self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f'groups={self.groups} must divide the channels of the block, {self.in_channels} '
                f'and {self.out_channels}'
            )

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape, so that they can be added."""
        return self.in_channels == self.out_channels and self.stride == 1

    def conv(
        self,
        kernel_size: tuple[int, int] = (3, 3),
        bias: bool = False,
        kind: type[nn.Conv2d] = nn.Conv2d,
    ) -> nn.Conv2d:
        """Build a conv; a smaller kernel has some of the taps of the 3x3 conv (section 3.3)."""
        dilation = self.dilation if max(kernel_size) > 1 else 1  # one tap has no neighbour
        height, width = kernel_size
        return kind(
            self.in_channels,
            self.out_channels,
            kernel_size,
            stride=self.stride,
            padding=(dilation * (height // 2), dilation * (width // 2)),
            dilation=dilation,
            groups=self.groups,
            bias=bias,
        )


def batch_norm(norm_cfg: Mapping[str, Any], channels: int) -> nn.Module:
    """Build the BatchNorm of a config.

    Raises:
        ValueError: If the config is invalid or of another norm.
    """
    check_layer_cfg('norm_cfg', norm_cfg, "dict(type='BN')")
    try:
        norm = build_norm_layer(dict(norm_cfg), channels)[1]
    except KeyError as error:
        raise ValueError(
            f"norm_cfg type {norm_cfg['type']!r} is unknown; use 'BN' or 'SyncBN'"
        ) from error
    if not isinstance(norm, _BatchNorm):
        raise ValueError(
            f"norm_cfg type {norm_cfg['type']!r} cannot be fused into a conv; use 'BN' or 'SyncBN'"
        )
    return norm


def conv_bn(
    conv: nn.Conv2d, norm_cfg: Mapping[str, Any], kind: type[nn.Sequential] = nn.Sequential
) -> nn.Sequential:
    """A conv and its BatchNorm, as ``conv`` and ``norm``."""
    return kind(OrderedDict(conv=conv, norm=batch_norm(norm_cfg, conv.out_channels)))


def check_branches(
    branches: Sequence[str], allowed: Sequence[str], required: Sequence[str], block: str
) -> None:
    """Check the branches that are chosen for a kind of block.

    Args:
        branches: The chosen ones.
        allowed: All that the block can have.
        required: Those that cannot be left out.
        block: Name of the block.

    Raises:
        ValueError: If a branch is unknown, missing or repeated.
    """
    given = set(branches)
    if not set(required) <= given <= set(allowed) or len(given) < len(branches):
        optional = [name for name in allowed if name not in required]
        raise ValueError(
            f'branches={branches} of {block} must hold {", ".join(map(repr, required))} and may '
            f'hold {", ".join(map(repr, optional)) or "no other"}, each once; by '
            'default the block has all of them'
        )
