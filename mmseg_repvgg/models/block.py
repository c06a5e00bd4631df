"""RepVGGBlock: 3x3, 1x1 and identity branches in training, one 3x3 conv when deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from mmcv.cnn import ConvModule, build_activation_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmseg_repvgg.models.batch_statistics import normed
from mmseg_repvgg.models.eager import is_unwatched
from mmseg_repvgg.models.layer import Layer, added, batch_norm, conv_bn, in_place, recomputed
from mmseg_repvgg.models.minimal_filtering import conv3x3
from mmseg_repvgg.models.pointwise import pointwise
from mmseg_repvgg.models.recompute import SMALLEST, conv_norm
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

    The variants of section 4.2 are subclasses: they build other training-form modules, add them up
    in another way, and merge them by another formula; the fused form is the same.

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
        branches: Names of the branches of the training form (Table 6); None for all that the block
            has.
        recompute_1x1: Compute the output of the 1x1 conv again in the backward pass instead of
            keeping it in memory (docs/training-cost.md): True, False, or None for wherever it is
            of some size.

    Raises:
        ValueError: On an argument that is out of range or cannot act.
    """

    BRANCHES: ClassVar[tuple[str, ...]] = ('3x3', '1x1', 'identity')
    REQUIRED: ClassVar[tuple[str, ...]] = ('3x3',)  # those that cannot be left out
    cannot_fuse: ClassVar[str] = ''  # why a variant has no fused form
    norms_1x1: ClassVar[bool] = True  # whether the 1x1 branch has a BatchNorm of its own
    frees_sum: ClassVar[bool] = True  # whether nothing but the activation needs what it is given

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
        branches: Sequence[str] | None = None,
        recompute_1x1: bool | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg)
        layer = Layer(in_channels, out_channels, stride, dilation, groups)
        if deploy and with_cp:
            raise ValueError('with_cp=True cannot act on a fused block; leave it out')
        self.branches = self._checked(self.BRANCHES if branches is None else tuple(branches))
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.with_cp, self.deploy = with_cp, deploy
        self.recompute_1x1 = recompute_1x1
        self._check_recomputation()
        if not deploy:
            self._build_branches(layer, norm_cfg)
        elif self.cannot_fuse:
            raise ValueError(f'deploy=True: {self.cannot_fuse}')
        else:
            self.branch_reparam = layer.conv(bias=True)
        self.se_layer = None if se_cfg is None else SqueezeExcitation(out_channels, **se_cfg)
        self.act = build_activation_layer(in_place(act_cfg) if self.frees_sum else dict(act_cfg))
        if deploy:
            self._activate_in_place()

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
            return recomputed(self, self._forward_branches, x)
        return self._forward_branches(x)

    def _forward_branches(self, x: Tensor) -> Tensor:
        return self._activate(self._add_branches(x))

    def _activate(self, x: Tensor) -> Tensor:
        return self.act(x if self.se_layer is None else self.se_layer(x))

    # What the variants replace

    def _build_branches(self, layer: Layer, norm_cfg: Mapping[str, Any]) -> None:
        """Build the training form; the geometry of ``branch_3x3.conv`` is that of the fused one."""
        has_identity = 'identity' in self.branches and layer.keeps_shape
        norm = batch_norm(norm_cfg, layer.out_channels) if has_identity else None
        self.register_module('branch_norm', norm)
        self.branch_3x3 = conv_bn(layer.conv(), norm_cfg)
        one = conv_bn(layer.conv((1, 1)), norm_cfg) if '1x1' in self.branches else None
        self.register_module('branch_1x1', one)

    def _add_branches(self, x: Tensor) -> Tensor:
        """The sum before the activation, in training form (eq. 1)."""
        out = self._forward_3x3(x)
        if not all(map(is_unwatched, self.branch_3x3.modules())):
            out = out.clone()  # a hook may have it, and it is overwritten
        if self.branch_1x1 is not None:
            out = added(out, self._forward_1x1(x))
        return out if self.branch_norm is None else added(out, normed(self.branch_norm, x))

    def _forward_3x3(self, x: Tensor) -> Tensor:
        """The 3x3 branch."""
        branch = self.branch_3x3
        if not is_unwatched(branch):
            return branch(x)
        out = conv3x3(branch.conv, x)
        return normed(branch.norm, out) if hasattr(branch, 'norm') else out

    def _forward_1x1(self, x: Tensor) -> Tensor:
        """The 1x1 branch."""
        branch = self.branch_1x1
        if not (self.norms_1x1 and is_unwatched(branch)):
            return branch(x)
        if self.with_cp or self.recompute_1x1 is False:
            return normed(branch.norm, pointwise(branch.conv, x))
        return conv_norm(branch.conv, branch.norm, x, 0 if self.recompute_1x1 else SMALLEST)

    def _merge(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias, float64, of the conv that equals :meth:`_add_branches`."""
        one = self.branch_1x1
        return merge_branches(
            (self.branch_3x3.conv.weight, self.branch_3x3.norm),
            None if one is None else (one.conv.weight, one.norm),
            self.branch_norm,
            self.groups,
        )

    def get_equivalent_kernel_bias(self) -> tuple[Tensor, Tensor]:
        """Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,) of the fused block, float64.

        Raises:
            ValueError: If a norm, or this kind of block, cannot be fused.
        """
        if self.deploy:
            conv = self.branch_reparam
            assert conv.bias is not None
            return conv.weight.detach().double(), conv.bias.detach().double()
        if self.cannot_fuse:
            raise ValueError(self.cannot_fuse)
        return self._merge()

    def switch_to_deploy(self) -> None:
        """Replace the branches by the one conv they equal. Fusing twice is fusing once.

        Raises:
            ValueError: If a norm, or this kind of block, cannot be fused; the block is then
                unchanged.
        """
        if self.deploy:
            return
        kernel, bias = self.get_equivalent_kernel_bias()
        fused = conv_like(self.branch_3x3.conv, kernel, bias)
        for name in [n for n in self._modules if n not in ('se_layer', 'act')]:
            delattr(self, name)
        self.branch_reparam = fused
        self.deploy, self.with_cp = True, False
        self._activate_in_place()

    def _activate_in_place(self) -> None:
        """A fused block needs what its conv gives for nothing else."""
        if isinstance(self.act, nn.ReLU):
            self.act.inplace = True

    def _check_recomputation(self) -> None:
        """Refuse a ``recompute_1x1`` that is no choice or cannot act."""
        if self.recompute_1x1 not in (None, True, False):
            raise ValueError(
                f'recompute_1x1={self.recompute_1x1!r} must be True, False, or None for wherever '
                'the map is of some size'
            )
        reasons = {
            'a fused block': self.deploy,
            'with_cp=True, which computes all of the block again': self.with_cp,
            f'branches={self.branches} of {type(self).__name__}': '1x1' not in self.branches,
            f'{type(self).__name__}, whose 1x1 conv has no BatchNorm': not self.norms_1x1,
        }
        for reason, holds in reasons.items():
            if self.recompute_1x1 and holds:
                raise ValueError(f'recompute_1x1=True cannot act on {reason}; leave it out')

    def _checked(self, branches: tuple[str, ...]) -> tuple[str, ...]:
        """Refuse branches that the block does not have, or cannot be without."""
        missing = set(self.REQUIRED) - set(branches)
        if missing or set(branches) - set(self.BRANCHES) or len(set(branches)) < len(branches):
            optional = [name for name in self.BRANCHES if name not in self.REQUIRED]
            raise ValueError(
                f'branches={branches} of {type(self).__name__} must hold '
                f'{", ".join(map(repr, self.REQUIRED))} and may hold '
                f'{", ".join(map(repr, optional)) or "no other"}, each once; leave branches out '
                'for all of them'
            )
        return branches
