"""RepVGGBlock: 3x3, 1x1 and identity branches in training, one 3x3 conv when deployed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmcv.cnn import ConvModule, build_activation_layer, build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmseg_repvgg.reparam.batchnorm import conv_like
from mmseg_repvgg.reparam.branches import merge_branches

FUSED_TRAINING_ERROR = (
    'this RepVGG backbone is in fused (deploy) form and in training mode. For inference call '
    'model.eval() first. To train, build it with deploy=False, load training-form weights, and '
    'fuse afterwards with tools/deploy_fuse.py'
)


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


class RepVGGBlock(BaseModule):
    """``act(se(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)))``, or ``act(se(conv3x3(x)))`` when fused.

    Parameter names equal mmpretrain's. The identity branch exists where input and output have the
    same shape (eq. 1). Dilation acts on the 3x3 conv in both forms; the 1x1 conv has padding 0.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: Of the 3x3 and the 1x1 conv.
        dilation: Of the 3x3 conv; its padding is the same number.
        groups: Of both convs.
        se_cfg: Arguments of :class:`SqueezeExcitation`, or None for no squeeze-excitation.
        norm_cfg: A BatchNorm: ``BN`` or ``SyncBN``.
        act_cfg: The activation.
        with_cp: Recompute the branches in the backward pass instead of keeping them in memory. The
            BatchNorm statistics are the same as without.
        deploy: Build the fused form.

    Raises:
        ValueError: On an argument that is out of range or cannot act.
    """

    branch_3x3: Any  # nn.Sequential of conv and norm
    branch_1x1: Any
    branch_norm: nn.Module | None
    branch_reparam: nn.Conv2d  # the fused form has this one instead

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        se_cfg: Mapping[str, Any] | None = None,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        act_cfg: Mapping[str, Any] = dict(type='ReLU'),
        with_cp: bool = False,
        deploy: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        for name, value in dict(stride=stride, dilation=dilation, groups=groups).items():
            if value < 1:
                raise ValueError(f'{name}={value} of a RepVGG block must be at least 1')
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f'groups={groups} must divide the channels of the block, {in_channels} and '
                f'{out_channels}'
            )
        if deploy and with_cp:
            raise ValueError('with_cp=True cannot act on a fused block; leave it out')
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.with_cp, self.deploy = with_cp, deploy
        conv_3x3 = nn.Conv2d(
            in_channels,
            out_channels,
            3,
            stride=stride,
            padding=dilation,
            dilation=dilation,
            groups=groups,
            bias=deploy,
        )
        if deploy:
            self.branch_reparam = conv_3x3
        else:
            conv_1x1 = nn.Conv2d(
                in_channels, out_channels, 1, stride=stride, groups=groups, bias=False
            )
            same_shape = in_channels == out_channels and stride == 1
            self.branch_norm = _batch_norm(norm_cfg, out_channels) if same_shape else None
            self.branch_3x3 = _conv_bn(conv_3x3, norm_cfg)
            self.branch_1x1 = _conv_bn(conv_1x1, norm_cfg)
        self.se_layer = None if se_cfg is None else SqueezeExcitation(out_channels, **se_cfg)
        self.act = build_activation_layer(dict(act_cfg))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride)).

        Raises:
            RuntimeError: If a fused block is in training mode.
        """
        if self.deploy:
            if self.training:
                raise RuntimeError(FUSED_TRAINING_ERROR)
            return self._activate(self.branch_reparam(x))
        if self.with_cp and torch.is_grad_enabled():
            return checkpoint(
                self._forward_branches,
                x,
                use_reentrant=False,
                context_fn=lambda: (nullcontext(), _frozen_statistics(self)),
            )
        return self._forward_branches(x)

    def _forward_branches(self, x: Tensor) -> Tensor:
        out = self.branch_3x3(x) + self.branch_1x1(x)
        if self.branch_norm is not None:
            out = out + self.branch_norm(x)
        return self._activate(out)

    def _activate(self, x: Tensor) -> Tensor:
        return self.act(x if self.se_layer is None else self.se_layer(x))

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,) of the fused block, float64.

        Raises:
            ValueError: If a norm cannot be fused.
        """
        if self.deploy:
            conv = self.branch_reparam
            assert conv.bias is not None
            return conv.weight.detach().double(), conv.bias.detach().double()
        return merge_branches(
            (self.branch_3x3.conv.weight, self.branch_3x3.norm),
            (self.branch_1x1.conv.weight, self.branch_1x1.norm),
            self.branch_norm,
            self.groups,
        )

    def switch_to_deploy(self) -> None:
        """Replace the branches by the one conv they equal. Fusing twice is fusing once.

        Raises:
            ValueError: If a norm cannot be fused; the block is then unchanged.
        """
        if self.deploy:
            return
        kernel, bias = self.get_equivalent_kernel_bias()
        self.branch_reparam = conv_like(self.branch_3x3.conv, kernel, bias)
        del self.branch_3x3, self.branch_1x1, self.branch_norm
        self.deploy, self.with_cp = True, False


def _batch_norm(norm_cfg: Mapping[str, Any], channels: int) -> nn.Module:
    norm = build_norm_layer(dict(norm_cfg), channels)[1]
    if not isinstance(norm, _BatchNorm):
        raise ValueError(
            f"norm_cfg type {norm_cfg['type']!r} cannot be fused into a conv; use 'BN' or 'SyncBN'"
        )
    return norm


def _conv_bn(conv: nn.Conv2d, norm_cfg: Mapping[str, Any]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=conv, norm=_batch_norm(norm_cfg, conv.out_channels)))


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
