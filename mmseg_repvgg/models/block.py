"""RepVGGBlock: 3x3, 1x1 and identity branches in training, one 3x3 conv when deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmseg_repvgg.models.layer import Layer, batch_norm, check_branches, conv_bn
from mmseg_repvgg.models.recomputation import (
    RecomputedSequential,
    check_recomputation,
    recomputed,
)
from mmseg_repvgg.models.squeeze_excitation import SqueezeExcitation
from mmseg_repvgg.reparam.batchnorm import conv_like, to_float64
from mmseg_repvgg.reparam.branches import identity_kernel, merge_branches
from mmseg_repvgg.reparam.module_hooks import computed_weights


class RepVGGBlock(BaseModule):
    """``act(se(bn(conv3x3(x)) + bn(conv1x1(x)) + bn(x)))``, or ``act(se(conv3x3(x)))`` when fused.

    Parameter names equal mmpretrain's. The identity branch exists where input and output have the
    same shape (eq. 1). Dilation acts on the 3x3 conv in both forms; the 1x1 conv has padding 0.

    The variants of section 4.2 are subclasses: they build, add and merge their training-form
    modules in another way; the fused form is the same.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        stride: Stride of the 3x3 and the 1x1 conv.
        dilation: Dilation and padding of the 3x3 conv.
        groups: Groups of both convs.
        se_cfg: Arguments of :class:`SqueezeExcitation`, or None for no squeeze-excitation. It comes
            before the activation, or after it with ``after_act=True`` (RepVGGplus).
        norm_cfg: A BatchNorm: ``BN`` or ``SyncBN``.
        act_cfg: The activation.
        with_cp: Recompute the block in the backward pass instead of keeping its feature maps in
            memory. BatchNorm statistics are unaffected.
        deploy: Build the fused form.
        branches: Names of the branches of the training form (Table 6); None for all of them.
        recompute_1x1: Recompute the 1x1 branch in the backward pass (docs/training-cost.md).

    Raises:
        ValueError: If an argument is out of range or has no effect.
    """

    BRANCHES: ClassVar[tuple[str, ...]] = ('3x3', '1x1', 'identity')
    REQUIRED: ClassVar[tuple[str, ...]] = ('3x3',)  # those that cannot be left out
    cannot_fuse: ClassVar[str] = ''  # why a variant has no fused form
    trains_fused = False  # whether the fused form may be in training mode (Int8TrainingHook)

    branch_3x3: Any  # nn.Sequential of conv and norm
    branch_1x1: Any
    branch_norm: nn.Module | None
    branch_reparam: nn.Conv2d  # only in the fused form

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
        branches: Sequence[str] | None = None,
        recompute_1x1: bool = False,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        layer = Layer(in_channels, out_channels, stride, dilation, groups)
        self.branches = self.BRANCHES if branches is None else tuple(branches)
        check_branches(self.branches, self.BRANCHES, self.REQUIRED, type(self).__name__)
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.with_cp, self.deploy, self.recompute_1x1 = with_cp, deploy, recompute_1x1
        if deploy and self.cannot_fuse:
            raise ValueError(f'deploy=True: {self.cannot_fuse}')
        if deploy:
            self.branch_reparam = layer.conv(bias=True)
        else:
            self._build_branches(layer, norm_cfg)
        check_recomputation(self)
        settings = dict(se_cfg or {})
        after_act = settings.pop('after_act', False)
        squeeze = nn.Identity() if se_cfg is None else SqueezeExcitation(out_channels, **settings)
        self.se_layer = nn.Identity() if after_act else squeeze
        self.act = build_activation_layer(dict(act_cfg))
        self.post_se = squeeze if after_act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride)).

        Raises:
            RuntimeError: If a fused block is in training mode.
        """
        return recomputed(self, self._forward, x) if self.with_cp else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        if self.deploy and self.training and not self.trains_fused:
            raise RuntimeError(
                'this RepVGG backbone is in fused (deploy) form and in training mode. For '
                'inference call model.eval() first. To train, build it with deploy=False, load '
                'training-form weights, and fuse afterwards with mmseg-repvgg fuse'
            )
        out = self.branch_reparam(x) if self.deploy else self._add_branches(x)
        return self.post_se(self.act(self.se_layer(out)))

    # The variants override these four

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        """Build the training form; ``branch_3x3.conv`` has the geometry of the fused conv."""
        self.branch_3x3 = conv_bn(layer.conv(), norm_cfg)
        kind = RecomputedSequential if self.recompute_1x1 else nn.Sequential
        has_1x1 = '1x1' in self.branches
        self.branch_1x1 = conv_bn(layer.conv((1, 1)), norm_cfg, kind) if has_1x1 else None
        has_identity = 'identity' in self.branches and layer.keeps_shape
        self.branch_norm = batch_norm(norm_cfg, layer.out_channels) if has_identity else None

    def _add_branches(self, x: Tensor) -> Tensor:
        """The sum before the activation, in training form (eq. 1)."""
        out = self.branch_3x3(x)
        if self.branch_1x1 is not None:
            out = out + self.branch_1x1(x)
        if self.branch_norm is not None:
            out = out + self.branch_norm(x)
        return out

    def branch_kernels(self) -> dict[str, tuple[Tensor, nn.Module]]:
        """Weight (C_out, C_in / groups, kh, kw) and norm of each branch that there is, by name."""
        convs = {'3x3': self.branch_3x3, '1x1': self.branch_1x1}
        found = {name: (b.conv.weight, b.norm) for name, b in convs.items() if b is not None}
        if self.branch_norm is not None:
            identity = identity_kernel(self.branch_3x3.conv.weight, self.groups)
            found['identity'] = identity, self.branch_norm
        return found

    def _merge(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias, float64, of the conv that equals :meth:`_add_branches` (eq. 3-4)."""
        return merge_branches(self.branch_kernels().values())

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,) of the fused block, float64.

        Both are differentiable functions of the block's parameters, as in the authors' code.

        Raises:
            ValueError: If a norm, or this kind of block, cannot be fused.
        """
        if self.deploy:
            conv = self.branch_reparam
            assert conv.bias is not None
            return to_float64(conv.weight), to_float64(conv.bias)
        if self.cannot_fuse:
            raise ValueError(self.cannot_fuse)
        with computed_weights(self):
            return self._merge()

    def fused_conv(self) -> nn.Conv2d:
        """The conv that equals the branches of a block in training form, which is unchanged.

        Raises:
            ValueError: If a norm, or this kind of block, cannot be fused.
        """
        with torch.no_grad():
            return conv_like(self.branch_3x3.conv, *self.get_equivalent_kernel_bias())

    def become_fused(self, conv: nn.Conv2d) -> None:
        """Replace the branches by ``conv``, which :meth:`fused_conv` returned."""
        rest = self.se_layer, self.act, self.post_se
        for name in [*self._modules, *(n for n in vars(self) if n.startswith('branch_'))]:
            delattr(self, name)
        self.branch_reparam = conv.train(self.training)
        # after the conv, as in a block that is built fused
        self.se_layer, self.act, self.post_se = rest
        self.deploy, self.with_cp, self.recompute_1x1 = True, False, False

    def switch_to_deploy(self) -> None:
        """Replace the branches by the equivalent conv. A second call changes nothing.

        Raises:
            ValueError: If a norm, or this kind of block, cannot be fused; the block is then
                unchanged.
        """
        if not self.deploy:
            self.become_fused(self.fused_conv())
