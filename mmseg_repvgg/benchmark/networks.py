"""The networks that benchmarks measure, with random weights of seed 0."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmseg_repvgg.analysis.complexity import count
from mmseg_repvgg.analysis.paper_tables import PAPER_ROWS, Classifier
from mmseg_repvgg.benchmark.candidate import Built
from mmseg_repvgg.benchmark.forward import calibrate, forward_pass, scene
from mmseg_repvgg.models.backbone import DilatedRepVGG
from mmseg_repvgg.reparam.equivalence import model_outputs
from mmseg_repvgg.reparam.rewrites import deployed_copy
from mmseg_repvgg.swap_backbone.bases import SCOPE, find_config

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'


class Logits(nn.Module):
    """What a segmentor computes in whole-image inference, as a module: images -> logits."""

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W)."""
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'When align_corners=True')
            return self.segmentor.encode_decode(images, [dict(img_shape=images.shape[2:])])


def segmentor(
    config: str,
    rewrites: Sequence[str],
    size: int | Sequence[int] = 713,
    batch: int = 1,
    backbone: dict[str, Any] | None = None,
    count_flops: bool = False,
    **run: Any,
) -> Built:
    """A segmentor on demo scenes, without its auxiliary heads.

    Args:
        config: Name of a config file in ``configs/``, or of a config of the installed mmseg with
            ``mmseg::`` before it.
        rewrites: What is done to it before; ``own`` stands for the backbone's own fusing.
        size: Height and width in pixels; one number for both.
        batch: Images.
        backbone: Changes of the backbone's settings.
        count_flops: Whether the info has the multiply-adds of convs and linear layers, ``flops``.
        **run: Of :func:`forward_pass`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    torch.manual_seed(0)
    cfg = Config.fromfile(str(_config(config)))
    init_default_scope('mmseg')
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.pop('auxiliary_head', None)
    if backbone:
        if 'type' in backbone:
            cfg.model.backbone = dict(backbone)
        else:
            cfg.model.backbone.update(backbone)
    model = MODELS.build(cfg.model)
    calibrate(
        model, scene(_small(height), _small(width), 2), lambda images: model_outputs(model, images)
    )
    names = [name for name in rewrites if name != 'own']
    if 'own' in rewrites:
        _fuse_as_its_authors_do(model)
    if names:
        model, _ = deployed_copy(model, names)
    info = dict(flops=_flops(model, (height, width))) if count_flops else {}
    built = forward_pass(Logits(model), scene(height, width, batch), **run)
    built.info.update(info)
    return built


def _small(side: int) -> int:
    """A side to calibrate with; some networks take nothing but multiples of 64."""
    return min(side, 193 if side % 64 else 192)


def _flops(segmentor: nn.Module, size: tuple[int, int]) -> float:
    """Multiply-adds for an image, of a copy without weights: nothing is computed."""
    return count(copy.deepcopy(Logits(segmentor)).to('meta'), size).flops


def classifier(
    name: str, batch: int = 1, size: int = 224, rewrites: Sequence[str] = (), **run: Any
) -> Built:
    """A classifier of the paper's Table 4 or 5 in deployed form: every conv-BN a conv.

    Args:
        name: Of :data:`mmseg_repvgg.analysis.paper_tables.PAPER_ROWS`, or of timm with ``timm/``
            before it, or ``mmpretrain/RepVGG-<arch>`` for mmpretrain's RepVGG; those two are fused
            by their own functions.
        batch: Images.
        size: Height and width in pixels.
        rewrites: What else is done to it before.
        **run: Of :func:`forward_pass`.
    """
    torch.manual_seed(0)
    source, _, inner = name.rpartition('/')
    if source == 'timm':
        network = _timm(inner)
    elif source == 'mmpretrain':
        network = _mmpretrain(inner)
    else:
        network = _paper(name, scene(min(size, 128), min(size, 128), 2))
    if rewrites:
        network, _ = deployed_copy(network, rewrites)
    return forward_pass(network.eval(), scene(size, size, batch), **run)


def ablated_classifier(
    arch: str, branches: Sequence[str], batch: int = 1, size: int = 224, **run: Any
) -> Built:
    """A RepVGG classifier in training form, not fused, with some of its branches (Table 6)."""
    torch.manual_seed(0)
    backbone = DilatedRepVGG(arch, branches=branches)
    network = Classifier(backbone, backbone.out_channels[-1])
    calibrate(network, scene(min(size, 128), min(size, 128), 2), network)
    return forward_pass(network, scene(size, size, batch), **run)


def convolution(kernel_size: int, channels: int, size: int, batch: int = 1, **run: Any) -> Built:
    """One convolution of stride 1 that keeps the size (Table 1)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, kernel_size, padding=kernel_size // 2)
    built = forward_pass(conv, torch.randn(batch, channels, size, size), **run)
    flops = batch * size**2 * channels**2 * kernel_size**2
    return Built(built.call, None, dict(built.info, flops=flops), built.memory)


def _config(name: str) -> Path:
    if name.startswith(SCOPE):
        return find_config(name)
    path = CONFIGS / name
    if not path.is_file():
        raise FileNotFoundError(f'{path} not found: benchmarks run from a checkout of the project')
    return path


def _paper(name: str, images: Tensor) -> nn.Module:
    """A row's model in deployed form, with memory (that of paper_tables has none for RepVGG)."""
    row = PAPER_ROWS[name]
    if row.backbone is None:
        backbone: Any = DilatedRepVGG(name.removeprefix('RepVGG-'))
        channels = backbone.out_channels[-1]
    else:
        import mmpretrain.models  # noqa: F401 (registers)
        from mmpretrain.registry import MODELS as MMPRETRAIN

        init_default_scope('mmpretrain')
        backbone, channels = MMPRETRAIN.build(dict(row.backbone)), row.channels
    network = Classifier(backbone, channels)
    has_norms = any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    if has_norms:  # VGG-16 has none, and takes images of its own size only
        calibrate(network, images, network)
    rewrites = ['branches'] if row.backbone is None else ['batchnorm'] if has_norms else []
    return deployed_copy(network, rewrites)[0] if rewrites else network


def _timm(name: str) -> nn.Module:
    import timm
    from timm.utils.model import reparameterize_model

    network = timm.create_model(name, pretrained=False)
    network.eval()
    return reparameterize_model(network)


def _mmpretrain(name: str) -> nn.Module:
    from mmpretrain.models.backbones.repvgg import RepVGG

    backbone = RepVGG(name.removeprefix('RepVGG-'))
    widths = DilatedRepVGG(name.removeprefix('RepVGG-'), deploy=True).out_channels
    network = Classifier(backbone, widths[-1])
    network.eval()
    _fuse_as_its_authors_do(network)
    return network


def _fuse_as_its_authors_do(model: nn.Module) -> None:
    """Call the ``switch_to_deploy`` of mmpretrain's backbone, as its users do."""
    for module in model.modules():
        if type(module).__name__ == 'RepVGG':
            module.switch_to_deploy()  # type: ignore[operator]
