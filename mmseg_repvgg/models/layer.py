"""What the blocks are made of: a layer's geometry, conv and BatchNorm, and recomputation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from mmcv.cnn import build_norm_layer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmseg_repvgg.checks import check_layer_cfg, is_whole


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
            if not is_whole(value, 1):
                raise ValueError(
                    f'{name}={value!r} of a RepVGG block must be at least 1, a whole number'
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
        """A conv whose taps are those of the 3x3 conv that a smaller kernel has (section 3.3)."""
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
    """The BatchNorm of a config.

    Raises:
        ValueError: If it is another norm.
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


def conv_bn(conv: nn.Conv2d, norm_cfg: Mapping[str, Any]) -> nn.Sequential:
    """A conv and its BatchNorm, as ``conv`` and ``norm``."""
    return nn.Sequential(OrderedDict(conv=conv, norm=batch_norm(norm_cfg, conv.out_channels)))


def in_place(act_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """The activation of a config; a ReLU overwrites its input unless the config says otherwise.

    For activations behind a sum or a BatchNorm, which nothing else needs.
    """
    return dict({'inplace': True} if act_cfg['type'] == 'ReLU' else {}, **act_cfg)


def added(total: Tensor, more: Tensor) -> Tensor:
    """``total + more``, written into ``total`` where that rounds alike (autocast mixes dtypes)."""
    return total.add_(more) if total.dtype == more.dtype else total + more


def recomputed(module: nn.Module, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``function(x)``, computed again in the backward pass instead of kept in memory.

    Args:
        module: Holds the BatchNorms of ``function``; each batch is counted once.
        function: What to compute.
        x: Its input.
    """
    return checkpoint(
        function,
        x,
        use_reentrant=False,
        context_fn=lambda: (nullcontext(), _frozen_statistics(module)),
    )


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep running statistics as they are: recomputation must not count a batch twice."""
    norms: list[Any] = [
        m for m in module.modules() if getattr(m, 'num_batches_tracked', None) is not None
    ]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(batches)
