"""The networks that benchmarks measure, with random weights of seed 0."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmseg_repvgg.analysis.complexity import count
from mmseg_repvgg.analysis.paper_tables import Classifier, build
from mmseg_repvgg.benchmark.candidate import Built
from mmseg_repvgg.benchmark.forward import forward_pass
from mmseg_repvgg.datasets.demo_scenes import compose_scene
from mmseg_repvgg.models.backbone import DilatedRepVGG
from mmseg_repvgg.reparam.equivalence import model_outputs
from mmseg_repvgg.reparam.rewrites import deployed_copy
from mmseg_repvgg.shipped_files import config_path
from mmseg_repvgg.swap_backbone.bases import SCOPE, find_config


class Logits(nn.Module):
    """Whole-image inference of a segmentor as a module: images -> logits."""

    def __init__(self, segmentor: Any) -> None:
        super().__init__()
        self.segmentor = segmentor

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes, H, W)."""
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'When align_corners=True')
            return self.segmentor.encode_decode(images, [dict(img_shape=images.shape[2:])])


def scene(height: int, width: int, batch: int = 1) -> Tensor:
    """Demo scenes, normalised: (batch, 3, height, width) float32 of mean 0 and deviation 1."""
    images = []
    for seed in range(batch):
        image, _ = compose_scene(np.random.default_rng(seed), 512, 256)
        images.append(cv2.resize(image, (width, height)).astype(np.float32))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), keepdim=True)
    return ((pixels - mean) / deviation).contiguous()


def calibrate(network: nn.Module, images: Tensor, run: Callable[[Tensor], object]) -> None:
    """Set BatchNorm statistics from ``images``, so that random weights give sane activations.

    Args:
        network: In any mode; left in eval mode.
        images: (N, C, H, W), N at least 2.
        run: A forward pass.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    with torch.no_grad():
        run(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


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
        config: A file in ``configs/``, or ``mmseg::`` and the name of a config of the installed
            mmseg.
        rewrites: Rewrites to apply first; ``['own']`` stands for the backbone's own fusing.
        size: Height and width in pixels; one number for both.
        batch: Number of images.
        backbone: Settings of the backbone to change; with a ``type``, all settings.
        count_flops: Add ``flops``, the multiply-adds of convs and linear layers, to the info.
        **run: Arguments of :func:`forward_pass`.
    """
    height, width = (size, size) if isinstance(size, int) else size
    model = calibrated_segmentor(config, (height, width), backbone)
    if list(rewrites) == ['own']:
        _fuse_by_own_method(model)
    elif rewrites:
        model, _ = deployed_copy(model, rewrites)
    info = {}
    if count_flops:  # on the meta device: nothing is computed
        on_meta = copy.deepcopy(Logits(model)).to('meta')
        info['flops'] = count(on_meta, (height, width)).flops
    built = forward_pass(Logits(model), scene(height, width, batch), **run)
    built.info.update(info)
    return built


def calibrated_segmentor(
    config: str, size: tuple[int, int], backbone: dict[str, Any] | None = None
) -> nn.Module:
    """A segmentor in training form with the BatchNorm statistics of demo scenes, in eval mode.

    Args:
        config: As for :func:`segmentor`.
        size: Height and width in pixels of the images it is to run on.
        backbone: As for :func:`segmentor`.
    """
    torch.manual_seed(0)
    cfg = Config.fromfile(str(_config(config)))
    init_default_scope('mmseg')
    cfg.model.pop('pretrained', None)
    cfg.model.backbone.pop('init_cfg', None)
    cfg.model.pop('auxiliary_head', None)
    if backbone and 'type' in backbone:
        cfg.model.backbone = backbone
    elif backbone:
        cfg.model.backbone.update(backbone)
    model = MODELS.build(cfg.model)
    # some networks take only multiples of 64
    height, width = (min(side, 193 if side % 64 else 192) for side in size)
    calibrate(model, scene(height, width, 2), lambda images: model_outputs(model, images))
    return model


def classifier(
    name: str, batch: int = 1, size: int = 224, rewrites: Sequence[str] = (), **run: Any
) -> Built:
    """A classifier of the paper's Table 4 or 5 in deployed form: every conv-BN is one conv.

    Args:
        name: Key of :data:`mmseg_repvgg.analysis.paper_tables.PAPER_ROWS`; or ``timm/<name>`` or
            ``mmpretrain/RepVGG-<arch>``, which are fused by their own functions.
        batch: Number of images.
        size: Height and width in pixels.
        rewrites: Further rewrites to apply first.
        **run: Arguments of :func:`forward_pass`.
    """
    torch.manual_seed(0)
    source, _, inner = name.rpartition('/')
    if source == 'timm':
        network = _timm_network(inner)
    elif source == 'mmpretrain':
        network = _mmpretrain_network(inner.removeprefix('RepVGG-'))
    else:
        network = _paper_network(name, min(size, 128))
    if rewrites:
        network, _ = deployed_copy(network, rewrites)
    return forward_pass(network, scene(size, size, batch), **run)


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
    return Path(config_path(name))


def _paper_network(name: str, calibration_size: int) -> nn.Module:
    """Model of a row of the paper in deployed form, with weights."""
    network = build(name, deploy=False)
    rewrites = ['branches'] if name.startswith('RepVGG') else ['batchnorm']
    if not any(isinstance(m, nn.BatchNorm2d) for m in network.modules()):
        return network  # VGG-16, which takes only images of its own size
    calibrate(network, scene(calibration_size, calibration_size, 2), network)
    return deployed_copy(network, rewrites)[0]


def _timm_network(name: str) -> nn.Module:
    import timm
    from timm.utils.model import reparameterize_model

    return reparameterize_model(timm.create_model(name, pretrained=False).eval())


def _mmpretrain_network(arch: str) -> nn.Module:
    from mmpretrain.models.backbones.repvgg import RepVGG

    network = Classifier(RepVGG(arch), DilatedRepVGG(arch, deploy=True).out_channels[-1])
    network.eval()
    _fuse_by_own_method(network)
    return network


def _fuse_by_own_method(model: nn.Module) -> None:
    """Call ``switch_to_deploy`` of mmpretrain's backbone."""
    for module in model.modules():
        if type(module).__name__ == 'RepVGG':
            module.switch_to_deploy()  # type: ignore[operator]
