"""Trace a segmentor as one graph: pixels or normalised images in, logits or class indices out."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmseg_repvgg.deploy.dynamic_size import trace_any_size
from mmseg_repvgg.deploy.model_description import ModelDescription

INPUT = 'images'
OUTPUTS = {False: 'logits', True: 'labels'}
"""Name of the graph's output, without and with argmax inside."""


class Graph(nn.Module):
    """The exported module: inference of a segmentor on images of one size.

    Args:
        model: An mmseg segmentor, in eval mode.
        info: What its input and output are to be.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, info: ModelDescription) -> None:
        super().__init__()
        self.model, self.threshold, self.to_rgb = model, info.threshold, info.to_rgb
        self.preprocessing, self.argmax = info.preprocessing_inside, info.argmax_inside
        like = next(model.parameters())
        for name in ('mean', 'std'):
            values = torch.tensor(getattr(info, name)).to(like)
            self.register_buffer(name, values.view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> logits (N, classes, H, W) or labels (N, H, W) int32."""
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


def logits_of(model: Any, images: Tensor) -> Tensor:
    """A segmentor's logits at the size of its input: (N, C, H, W) -> (N, classes, H, W)."""
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'When align_corners=True')  # advice on the input size
        return model.encode_decode(images, [dict(img_shape=images.shape[2:])])


def trace(model: Any, info: ModelDescription) -> ExportedProgram:
    """Trace a segmentor with the input and output that ``info`` describes.

    Raises:
        ValueError: If the graph holds adaptive pooling other than global pooling (to 1 x 1); names
            the sizes and the rewrite that removes them.
    """
    graph = Graph(model, info)
    program = trace_any_size(graph, info.channels) if info.dynamic_size else _trace(graph, info)
    pooled = {tuple(n.args[1]) for n in program.graph.nodes if 'adaptive' in str(n.target)}
    sizes = sorted(size for size in pooled if math.prod(size) != 1)
    if sizes:
        raise ValueError(
            f'the graph holds adaptive pooling to {", ".join(map(str, sizes))}, which no exported '
            "format expresses exactly for every size. The rewrite 'pyramid' removes it from "
            'PSPHead, UPerHead and UAFMHead: keep it in --rewrites. Other heads cannot be exported'
        )
    return program


def _trace(graph: Graph, info: ModelDescription) -> ExportedProgram:
    """Trace a graph for images of ``info.size``."""
    like = next(graph.parameters())
    batch = 2 if info.dynamic_batch else 1  # a dynamic batch of 1 would become a constant
    images = torch.zeros(batch, info.channels, *info.size, device=like.device, dtype=like.dtype)
    dynamic: Any = ({0: Dim('batch', min=1)},) if info.dynamic_batch else None
    with torch.no_grad():
        graph(images)  # computes the constants for this size, outside the graph
        return torch.export.export(graph, (images,), dynamic_shapes=dynamic)
