"""From a segmentor to one graph: pixels or normalised images in, logits or class indices out."""

from __future__ import annotations

import copy
import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

INPUT = 'images'
OUTPUTS = {False: 'logits', True: 'labels'}
"""Name of the graph's output, without and with argmax inside."""


@dataclass(frozen=True)
class Normalisation:
    """What a segmentor does to an image in BGR before the network sees it."""

    mean: tuple[float, float, float]  # in the order the network sees the channels
    std: tuple[float, float, float]
    to_rgb: bool

    @classmethod
    def of(cls, model: Any) -> Normalisation:
        """Read it off the data preprocessor of a segmentor.

        Raises:
            ValueError: If that is not mmseg's.
        """
        preprocessor = model.data_preprocessor
        if not hasattr(preprocessor, '_enable_normalize'):
            raise ValueError(
                f'data_preprocessor {type(preprocessor).__name__} is unknown: what it does to an '
                "image cannot be described; use dict(type='SegDataPreProcessor', ...)"
            )
        mean, std = (0.0,) * 3, (1.0,) * 3
        if preprocessor._enable_normalize:
            mean, std = (tuple(t.flatten().tolist()) for t in (preprocessor.mean, preprocessor.std))
        # by its name in either family
        names = ('channel_conversion', '_channel_conversion')
        return cls(mean, std, any(getattr(preprocessor, name, False) for name in names))


class Graph(nn.Module):
    """What is exported: the segmentor's inference on images of one size.

    Args:
        model: An mmseg segmentor, in eval mode.
        preprocessing: Take pixels 0..255 in BGR and normalise them inside.
        argmax: Give class indices (N, H, W) int32 in the place of logits (N, classes, H, W).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, preprocessing: bool, argmax: bool) -> None:
        super().__init__()
        self.model, self.preprocessing, self.argmax = model, preprocessing, argmax
        normalisation = Normalisation.of(model)
        self.to_rgb = normalisation.to_rgb
        like = next(model.parameters())
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(normalisation, name)).to(like)
            self.register_buffer(name, values.view(1, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, classes, H, W) or labels (N, H, W)."""
        if self.preprocessing:
            if self.to_rgb:  # a flip would become a Slice with negative steps
                images = torch.cat(images.split(1, dim=1)[::-1], dim=1)
            images = (images - self.mean) / self.std
        logits = logits_of(self.model, images)
        return logits.argmax(1).to(torch.int32) if self.argmax else logits


def logits_of(model: Any, images: Tensor) -> Tensor:
    """A segmentor's logits at the size of its input: (N, 3, H, W) -> (N, classes, H, W)."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'When align_corners=True')  # sizes it would prefer
        return model.encode_decode(images, [dict(img_shape=images.shape[2:])])


def raw_and_normalised(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Images as the exported network takes them: with preprocessing inside, and without.

    Args:
        model: The segmentor, whose own data preprocessor does it.
        pixels: (N, 3, H, W) uint8 in BGR.

    Returns:
        Both (N, 3, H, W) float32.
    """
    preprocessor = copy.copy(model.data_preprocessor)
    preprocessor.test_cfg = None  # pads; a graph has one size
    return pixels.float(), preprocessor(dict(inputs=list(pixels)), False)['inputs']


def trace(graph: Graph, size: tuple[int, int], dynamic_batch: bool) -> ExportedProgram:
    """Trace a graph for images of ``size`` (height, width) and one image, or any number.

    Raises:
        ValueError: If adaptive pooling is left, which exporters cannot express exactly.
    """
    like = next(graph.parameters())
    # Not 1, which would be taken for a constant.
    images = torch.zeros(2 if dynamic_batch else 1, 3, *size, device=like.device, dtype=like.dtype)
    dynamic: Any = ({0: Dim('batch', min=1)},) if dynamic_batch else None
    with torch.no_grad():
        graph(images)  # constants for this size are made here, outside the graph
        program = torch.export.export(graph, (images,), dynamic_shapes=dynamic)
    refuse_adaptive_pooling(program)
    return program


def refuse_adaptive_pooling(program: ExportedProgram) -> None:
    """Raise if a graph pools to a given size; to 1 x 1, which is a mean, is fine.

    Raises:
        ValueError: Naming the sizes and the rewrite that removes them.
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
            "format expresses exactly for every size. The rewrite 'pyramid' removes that of "
            'PSPHead and UPerHead: leave it in --rewrites; other heads cannot be exported'
        )
