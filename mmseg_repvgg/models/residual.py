"""Residual Reorg: the layers of RepVGG with the shortcuts of ResNet-18/34 (section 4.2, Table 7).

"Residual Reorg builds each stage by re-organizing it in a ResNet-like manner (2 layers per block).
Specifically, the resultant model has one 3x3 layer in the first and last stages and 2, 3, 8
residual blocks in stage2, 3, 4, and uses shortcuts just like ResNet-18/34."
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from mmcv.cnn import build_activation_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmseg_repvgg.models.layer import Layer, conv_bn
from mmseg_repvgg.models.recomputation import recomputed

CANNOT_FUSE = (
    "block='residual_reorg' cannot be fused: a shortcut across two 3x3 layers with a ReLU between "
    'them stays at inference (section 4.2). Serve it as it is, with '
    "rewrites=['batchnorm'], or train another block"
)


class PlainLayer(nn.Sequential):
    """``act(bn(conv3x3(x)))``: a stage of a single layer.

    Args:
        layer: Its geometry.
        norm_cfg: ``BN`` or ``SyncBN``.
        act_cfg: The activation.
    """

    cannot_fuse: ClassVar[str] = CANNOT_FUSE

    def __init__(
        self, layer: Layer, norm_cfg: Mapping[str, Any], act_cfg: Mapping[str, Any]
    ) -> None:
        parts = OrderedDict(conv_bn(layer.conv(), norm_cfg).named_children())
        super().__init__(OrderedDict(parts, act=build_activation_layer(dict(act_cfg))))


class ResidualBlock(BaseModule):
    """``act(bn(conv3x3(act(bn(conv3x3(x))))) + shortcut(x))``, the basic block of ResNet-18/34.

    The shortcut is the identity where the shape stays, otherwise a dense 1x1 conv with the stride
    of the first layer and a BatchNorm.

    Args:
        first: Geometry of the first layer.
        second: Geometry of the second layer, which must keep the shape.
        norm_cfg: ``BN`` or ``SyncBN``.
        act_cfg: The activation.
        with_cp: Recompute the block in the backward pass to save memory.
    """

    cannot_fuse: ClassVar[str] = CANNOT_FUSE

    def __init__(
        self,
        first: Layer,
        second: Layer,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        act_cfg: Mapping[str, Any] = dict(type='ReLU'),
        with_cp: bool = False,
    ) -> None:
        super().__init__()
        assert second.keeps_shape and second.in_channels == first.out_channels
        self.with_cp = with_cp
        self.layer_1 = conv_bn(first.conv(), norm_cfg)
        self.layer_2 = conv_bn(second.conv(), norm_cfg)
        projection = Layer(first.in_channels, first.out_channels, first.stride).conv((1, 1))
        self.shortcut = nn.Identity() if first.keeps_shape else conv_bn(projection, norm_cfg)
        self.act = build_activation_layer(dict(act_cfg))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, ceil(H / stride), ceil(W / stride))."""
        return recomputed(self, self._forward, x) if self.with_cp else self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer_2(self.act(self.layer_1(x))) + self.shortcut(x))


def residual_stage(
    layers: Sequence[Layer],
    norm_cfg: Mapping[str, Any],
    act_cfg: Mapping[str, Any],
    with_cp: bool,
    deploy: bool,
    **unused: Any,
) -> list[nn.Module]:
    """The blocks of a stage: one plain layer, or a residual block for every two layers.

    Args:
        layers: The layers of the stage.
        norm_cfg: ``BN`` or ``SyncBN``.
        act_cfg: The activation.
        with_cp: Recompute each residual block in the backward pass.
        deploy: Must be False: there is no fused form.
        **unused: Other settings of :class:`~mmseg_repvgg.models.block.RepVGGBlock`; they must be
            None or False.

    Raises:
        ValueError: If the number of layers is odd and above 1, or a setting has no effect.
    """
    if deploy:
        raise ValueError(f'deploy=True: {CANNOT_FUSE}')
    for name, value in unused.items():
        if value is not None and value is not False:
            raise ValueError(
                f"{name}={value} has no effect on block='residual_reorg', which has a shortcut, no "
                'branches and no squeeze-excitation; leave it out'
            )
    if len(layers) == 1:
        return [PlainLayer(layers[0], norm_cfg, act_cfg)]
    if len(layers) % 2:
        raise ValueError(
            f"block='residual_reorg' has two layers per block: a stage of {len(layers)} layers "
            'cannot be paired; give stages 1 layer or an even number (num_blocks of the arch)'
        )
    pairs = zip(layers[::2], layers[1::2], strict=True)
    return [ResidualBlock(*pair, norm_cfg, act_cfg, with_cp) for pair in pairs]
