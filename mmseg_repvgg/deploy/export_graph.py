"""Trace a segmentor as one graph: pixels or normalised images in, logits or class indices out."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

INPUT = 'images'
OUTPUTS = {False: 'logits', True: 'labels'}
"""Name of the graph's output, without and with argmax inside."""


@dataclass(frozen=True)
class Normalisation:
    """How a segmentor normalises a BGR image before the network sees it."""

    mean: tuple[float, ...]  # in the order the network sees the channels
    std: tuple[float, ...]
    to_rgb: bool

    @classmethod
    def of(cls, model: Any, normalize: Mapping[str, Any] | None = None) -> Normalisation:
        """Read it from the data preprocessor of a segmentor.

        Args:
            model: The segmentor.
            normalize: Settings of the transform ``Normalize`` of the test pipeline. If given, the
                data preprocessor must not normalise.

        Raises:
            ValueError: If the data preprocessor is not mmseg's, both normalise, or the number of
                means does not fit the channels.
        """
        preprocessor, channels = model.data_preprocessor, num_channels(model)
        known = type(preprocessor).__module__.startswith(('mmseg.', 'mmengine.'))
        if not known or not hasattr(preprocessor, '_enable_normalize'):
            raise ValueError(
                f'data_preprocessor {type(preprocessor).__name__} is unknown: what it does to an '
                "image cannot be described; use dict(type='SegDataPreProcessor', ...)"
            )
        # the package families name it differently; mmseg reorders three channels only
        names = ('channel_conversion', '_channel_conversion')
        to_rgb = channels == 3 and any(getattr(preprocessor, name, False) for name in names)
        mean: tuple[float, ...] = (0.0,)
        std: tuple[float, ...] = (1.0,)
        if preprocessor._enable_normalize:
            mean, std = (tuple(t.flatten().tolist()) for t in (preprocessor.mean, preprocessor.std))
        if normalize is not None:
            if to_rgb or preprocessor._enable_normalize:
                raise ValueError(
                    'images are normalised twice: by Normalize of the test pipeline, and by '
                    'data_preprocessor (mean, std or bgr_to_rgb). Remove one of them'
                )
            mean, std = normalize['mean'], normalize['std']
            to_rgb = channels == 3 and bool(normalize['to_rgb'])
        mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
        if {len(mean), len(std)} != {channels}:
            raise ValueError(
                f'the images are normalised by {len(mean)} means and {len(std)} standard '
                f'deviations, but the backbone takes {channels} channels: give one for each'
            )
        return cls(mean, std, to_rgb)


class Graph(nn.Module):
    """The exported module: inference of a segmentor on images of one size.

    Args:
        model: An mmseg segmentor, in eval mode.
        preprocessing: Take pixels 0..255 in BGR and normalise them inside.
        argmax: Give class indices (N, H, W) int32 instead of logits (N, classes, H, W).
        normalize: See :meth:`Normalisation.of`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Any,
        preprocessing: bool,
        argmax: bool,
        normalize: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.preprocessing, self.argmax = model, preprocessing, argmax
        normalisation = Normalisation.of(model, normalize)
        self.to_rgb, self.channels = normalisation.to_rgb, len(normalisation.mean)
        self.threshold = threshold_of(model)
        like = next(model.parameters())
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(normalisation, name)).to(like)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes, H, W) or labels (N, H, W)."""
        if self.preprocessing:
            if self.to_rgb:  # a flip would become a Slice with negative steps
                images = torch.cat(images.split(1, dim=1)[::-1], dim=1)
            images = (images - self.mean) / self.std
        logits = logits_of(self.model, images)
        if not self.argmax:
            return logits
        if self.threshold is not None:
            return (logits[:, 0].sigmoid() > self.threshold).to(torch.int32)
        return logits.argmax(1).to(torch.int32)


def num_channels(model: Any) -> int:
    """The image channels of a segmentor: the input channels of its backbone's first conv."""
    convs = (m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def threshold_of(model: Any) -> float | None:
    """Sigmoid above which a head with one channel predicts 1; None if each class has one."""
    if getattr(model, 'out_channels', 2) != 1:
        return None
    heads: Any = model.decode_head
    head: Any = heads[-1] if isinstance(heads, nn.ModuleList) else heads
    return float(head.threshold)


def logits_of(model: Any, images: Tensor) -> Tensor:
    """A segmentor's logits at the size of its input: (N, C, H, W) -> (N, classes, H, W)."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'When align_corners=True')  # advice on the input size
        return model.encode_decode(images, [dict(img_shape=images.shape[2:])])


def raw_and_normalised(
    model: Any, pixels: Tensor, normalize: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Input of the exported network, with preprocessing inside and without.

    Args:
        model: The segmentor; its data preprocessor normalises.
        pixels: (N, C, H, W) in BGR.
        normalize: See :meth:`Normalisation.of`.

    Returns:
        Both (N, C, H, W) float32.
    """
    preprocessor = copy.copy(model.data_preprocessor)
    preprocessor.test_cfg = None  # it pads, but a graph has one size
    raw = pixels.float()
    images = raw if normalize is None else _normalize_by_mmcv(raw, normalize)
    return raw, preprocessor(dict(inputs=list(images)), False)['inputs']


def _normalize_by_mmcv(images: Tensor, normalize: Mapping[str, Any]) -> Tensor:
    mean, std = (np.array(normalize[name], np.float64) for name in ('mean', 'std'))
    planes = [mmcv.imnormalize(i, mean, std, normalize['to_rgb']) for i in _channels_last(images)]
    return torch.from_numpy(np.stack(planes)).permute(0, 3, 1, 2).contiguous()


def _channels_last(images: Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).cpu().numpy()


def trace(graph: Graph, size: tuple[int, int], dynamic_batch: bool) -> ExportedProgram:
    """Trace a graph for images of ``size`` (height, width), one or any number at a time.

    Raises:
        ValueError: If adaptive pooling is left: see :func:`refuse_adaptive_pooling`.
    """
    like = next(graph.parameters())
    # Not 1, which would become a constant.
    shape = 2 if dynamic_batch else 1, graph.channels, *size
    images = torch.zeros(shape, device=like.device, dtype=like.dtype)
    dynamic: Any = ({0: Dim('batch', min=1)},) if dynamic_batch else None
    with torch.no_grad():
        graph(images)  # computes the constants for this size, outside the graph
        program = torch.export.export(graph, (images,), dynamic_shapes=dynamic)
    refuse_adaptive_pooling(program)
    return program


def refuse_adaptive_pooling(program: ExportedProgram) -> None:
    """Raise if a graph holds adaptive pooling other than global pooling (to 1 x 1).

    Raises:
        ValueError: If so; names the sizes and the rewrite that removes them.
    """
    sizes = sorted(
        {
            tuple(node.args[1])
            for node in program.graph.nodes
            if 'adaptive' in str(node.target) and math.prod(node.args[1]) != 1
        }
    )
    if sizes:
        raise ValueError(
            f'the graph holds adaptive pooling to {", ".join(map(str, sizes))}, which no exported '
            "format expresses exactly for every size. The rewrite 'pyramid' removes it from "
            'PSPHead and UPerHead: keep it in --rewrites. Other heads cannot be exported'
        )
