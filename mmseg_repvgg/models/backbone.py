"""DilatedRepVGG: the RepVGG backbone with strides and dilations, for mmseg and mmpretrain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.logging import print_log
from mmengine.model import BaseModule, PretrainedInit
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_repvgg.checkpoint.loading import accept_training_weights, below, load_backbone
from mmseg_repvgg.checkpoint.reading import passed_over, state_dict_of
from mmseg_repvgg.checks import check_integer, check_layer_cfg, check_sequence, is_integer
from mmseg_repvgg.models.arch import RepVGGArch, get_arch
from mmseg_repvgg.models.layer import Layer
from mmseg_repvgg.models.variants import VARIANTS, Builder
from mmseg_repvgg.reparam.branches import fuse_branches

INIT_CFG = (
    dict(type='Kaiming', layer=['Conv2d']),
    dict(type='Constant', val=1, layer=['_BatchNorm', 'GroupNorm']),
)


@MODELS.register_module()
class DilatedRepVGG(BaseModule):
    """RepVGG (paper, section 3) with ``strides`` and ``dilations`` as in mmseg's ResNet.

    The stem is the paper's stage1 (stride 2); ``stage_1`` .. ``stage_4`` are its stage2 .. stage5.
    The plain name works in the mmseg and the mmpretrain scope. Parameter names equal those of
    mmpretrain's ``RepVGG``.

    The paper's PSPNets (section 4.3) have output stride 8, ``strides=(2, 2, 1, 1)``, and

    * full: ``dilations=(1, 1, 2, 4)``;
    * fast (B models): ``dilations=(1, 1, (1,) * 12 + (2,) * 4, 4)``.

    Args:
        arch: A name of the table in :mod:`mmseg_repvgg.models.arch`, or a dictionary of the
            fields of :class:`~mmseg_repvgg.models.arch.RepVGGArch`.
        in_channels: Channels of the images; weights for RGB images in ``pretrained`` are adapted.
        num_stages: Number of stages after the stem; by default all that the arch has.
        strides: Stride of the first layer of each stage.
        dilations: Dilation of each stage: one number for all of its layers, or a sequence with one
            number per layer.
        out_indices: Stages (0 .. num_stages - 1) whose feature maps are returned.
        frozen_stages: -1: none; 0: the stem; n: the stem and the first n stages.
        norm_cfg: ``BN`` or ``SyncBN``.
        act_cfg: The activation.
        norm_eval: Keep the BatchNorms in eval mode while training.
        with_cp: Recompute each block in the backward pass to save memory.
        deploy: Build the fused form; it takes fused weights, and fuses training weights on loading.
        pretrained: Path or URL of ImageNet weights; short for
            ``init_cfg=dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')``.
        block: A name of the table in :mod:`mmseg_repvgg.models.variants` (Table 7).
        branches: Branches that the blocks have in training form (Table 6), for example
            ``('3x3', 'identity')``; by default all.
        recompute_1x1: Recompute the 1x1 branches in the backward pass, which saves a third of the
            memory for activations (docs/training-cost.md).
        init_cfg: mmengine's initialization; Kaiming for convs by default.

    Raises:
        ValueError: If an argument is out of range or has no effect.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | RepVGGArch,
        in_channels: int = 3,
        num_stages: int | None = None,
        strides: Sequence[int] = (2, 2, 2, 2),
        dilations: Sequence[int | Sequence[int]] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_cfg: Mapping[str, Any] = dict(type='BN'),
        act_cfg: Mapping[str, Any] = dict(type='ReLU'),
        norm_eval: bool = False,
        with_cp: bool = False,
        deploy: bool = False,
        pretrained: str | None = None,
        block: str = 'repvgg',
        branches: Sequence[str] | None = None,
        recompute_1x1: bool = False,
        init_cfg: Any = None,
    ) -> None:
        if pretrained is not None:
            if init_cfg is not None:
                raise ValueError('pretrained and init_cfg are both given; keep one of them')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained, prefix='backbone.')
        super().__init__([dict(cfg) for cfg in INIT_CFG] if init_cfg is None else init_cfg)
        if block not in VARIANTS:
            raise ValueError(f'unknown block {block!r}; choose from {", ".join(VARIANTS)}')
        self.arch = get_arch(arch)
        depth = len(self.arch.num_blocks)
        self.num_stages = depth if num_stages is None else num_stages
        if not (is_integer(self.num_stages) and 1 <= self.num_stages <= depth):
            raise ValueError(f'num_stages={num_stages!r} must be in 1..{depth}')
        check_integer('in_channels', in_channels, 1)
        check_layer_cfg('act_cfg', act_cfg, "dict(type='ReLU')")
        self.strides = _per_stage('strides', strides, self.num_stages)
        self.dilations = self._per_layer(_per_stage('dilations', dilations, self.num_stages))
        self.out_indices = check_sequence('out_indices', out_indices)
        self.frozen_stages, self.norm_eval, self.deploy = frozen_stages, norm_eval, deploy
        self._check_outputs_and_freezing()
        self._block_settings: dict[str, Any] = dict(
            in_channels=in_channels, norm_cfg=norm_cfg, act_cfg=act_cfg, block=block,
            branches=branches,
        )  # fmt: skip
        accept_training_weights(self)

        self._build(
            in_channels,
            VARIANTS[block].build,
            se_cfg=self.arch.se_cfg,
            norm_cfg=norm_cfg,
            act_cfg=act_cfg,
            with_cp=with_cp,
            deploy=deploy,
            branches=branches,
            recompute_1x1=recompute_1x1,
        )
        self._freeze_stages()

    def _build(self, in_channels: int, build: Builder, **settings: Any) -> None:
        """Build the stem, which is a stage of one layer, and the stages."""
        channels, *widths = self.arch.widths
        (self.stem,) = build([Layer(in_channels, channels, stride=2)], **settings)
        number = 1
        for i, dilations in enumerate(self.dilations):
            layers = []
            for j, dilation in enumerate(dilations):
                stride = self.strides[i] if j == 0 else 1
                groups = self.arch.groups(number)
                layers.append(Layer(channels, widths[i], stride, dilation, groups))
                channels, number = widths[i], number + 1
            self.add_module(f'stage_{i + 1}', nn.Sequential(*build(layers, **settings)))

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages after the stem."""
        return [getattr(self, f'stage_{i + 1}') for i in range(self.num_stages)]

    @property
    def out_channels(self) -> tuple[int, ...]:
        """Channels of the returned feature maps."""
        return tuple(self.arch.widths[1 + i] for i in self.out_indices)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, in_channels, H, W) -> a feature map (N, C, h, w) per entry of out_indices.

        Raises:
            RuntimeError: If the backbone is fused and in training mode.
        """
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def init_weights(self) -> None:
        """Initialize as ``init_cfg`` says; ``Pretrained`` takes weights in any naming scheme.

        Raises:
            CheckpointError: If the pretrained weights do not fill the whole backbone.
        """
        given = self.init_cfg if isinstance(self.init_cfg, (list, tuple)) else [self.init_cfg]
        pretrained = [c for c in given if c and c['type'] in ('Pretrained', PretrainedInit)]
        if not pretrained:
            super().init_weights()
            return
        # the last one fills the whole backbone, whatever came before
        source = str(pretrained[-1]['checkpoint'])
        checkpoint = CheckpointLoader.load_checkpoint(source, map_location='cpu', logger='silent')
        state = below(pretrained[-1].get('prefix') or '', state_dict_of(checkpoint), source)
        print_log(load_backbone(self, state, source) + passed_over(checkpoint), logger='current')
        self._is_init = True

    rewrites = ('branches',)  # from the training form to the fused form

    def training_form(self) -> DilatedRepVGG:
        """The same backbone with branches, in eval mode, without its weights."""
        backbone = DilatedRepVGG(
            self.arch,
            num_stages=self.num_stages,
            strides=self.strides,
            dilations=self.dilations,
            out_indices=self.out_indices,
            **self._block_settings,
        )
        return backbone.eval()

    def switch_to_deploy(self) -> None:
        """Fuse every block, in place. A second call changes nothing.

        Raises:
            ValueError: If a norm, or this kind of block, cannot be fused.
        """
        fuse_branches(self)

    def train(self, mode: bool = True) -> DilatedRepVGG:
        """Set the mode; frozen stages stay in eval mode, and all norms do with ``norm_eval``."""
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def _freeze_stages(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen_modules: list[nn.Module] = [self.stem, *self.stages[: self.frozen_stages]]
        for frozen in frozen_modules:
            frozen.eval()
            frozen.requires_grad_(False)

    def _per_layer(self, dilations: tuple[int | Sequence[int], ...]) -> tuple[tuple[int, ...], ...]:
        """Expand to one dilation per layer."""
        layers = []
        for i, (dilation, depth) in enumerate(zip(dilations, self.arch.num_blocks, strict=False)):
            given: tuple[Any, ...] = (dilation,) * depth
            if not is_integer(dilation):
                given = check_sequence(f'dilations[{i}]', dilation)
            if len(given) != depth:
                raise ValueError(
                    f'dilations[{i}]={given} has {len(given)} values; stage_{i + 1} has {depth} '
                    'layers: give one number for all of them or one per layer'
                )
            layers.append(given)
        return tuple(layers)

    def _check_outputs_and_freezing(self) -> None:
        """Check ``out_indices``, ``frozen_stages`` and ``norm_eval``."""
        last = self.num_stages - 1
        given = list(self.out_indices)
        is_ordered = all(is_integer(i, 0) for i in given) and given == sorted(set(given))
        if not given or not is_ordered or given[-1] > last:
            raise ValueError(
                f'out_indices={self.out_indices} must be increasing stage numbers from 0 to {last}'
            )
        if self.out_indices[-1] != last:
            raise ValueError(
                f'out_indices={self.out_indices} leave the stages after {self.out_indices[-1]} '
                f'without effect; give num_stages={self.out_indices[-1] + 1} and as many strides '
                'and dilations'
            )
        if not (is_integer(self.frozen_stages) and -1 <= self.frozen_stages <= self.num_stages):
            raise ValueError(
                f'frozen_stages={self.frozen_stages!r} must lie in -1..{self.num_stages}'
            )
        if self.deploy and (self.frozen_stages >= 0 or self.norm_eval):
            raise ValueError(
                f'frozen_stages={self.frozen_stages} and norm_eval={self.norm_eval} have no effect '
                'on a fused backbone (deploy=True); leave them out'
            )


def _per_stage(name: str, values: Sequence[Any], num_stages: int) -> tuple[Any, ...]:
    given = check_sequence(name, values)
    if len(given) != num_stages:
        raise ValueError(
            f'{name}={given} has {len(given)} values; {num_stages} stages need {num_stages}'
        )
    return given
