"""Trace a segmentor as one graph for images of any height and width."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmseg.models.utils.wrappers import Upsample, resize
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from mmseg_repvgg.deploy.model_description import SMALLEST_OF_ANY

TRACED = (73, 105)
"""Height and width of the images that are traced: no special case, and quick."""

SHARES = ((1, 1), (1, 2), (2, 1), (2, 3), (3, 2))
"""Height and width of the checked sizes, as multiples of a quarter of the given size."""


def odd_sizes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """Five odd sizes, a quarter to three quarters of a size, to compare a graph for all sizes.

    Their remainders modulo the output strides differ.
    """
    height, width = (max(length, 4 * SMALLEST_OF_ANY) for length in size)
    return [
        (rows * height // 4 + 2 * i | 1, columns * width // 4 + 6 * i | 1)
        for i, (rows, columns) in enumerate(SHARES)
    ]


def trace_any_size(graph: nn.Module, channels: int) -> ExportedProgram:
    """Trace a graph for any number of images of any size from :data:`SMALLEST_OF_ANY` pixels.

    Args:
        graph: (N, C, H, W) -> (N, ..., H, W).
        channels: C.

    Raises:
        ValueError: If the graph is another one for other sizes; names what PyTorch found.
    """
    like = next(graph.parameters())
    images = torch.zeros(2, channels, *TRACED, device=like.device, dtype=like.dtype)
    sides = {2: Dim('height', min=SMALLEST_OF_ANY), 3: Dim('width', min=SMALLEST_OF_ANY)}
    shapes: Any = ({0: Dim('batch', min=1), **sides},)
    try:
        with torch.no_grad(), _resize_to_open_sizes():
            return torch.export.export(graph, (images,), dynamic_shapes=shapes, strict=False)
    except (RuntimeError, ValueError) as error:  # of which PyTorch has many kinds
        reason = ' '.join(str(error).split())[:500]
        raise ValueError(
            'the network cannot be exported for all sizes, because its layers depend on the size '
            f'of the image: {reason}. Export it for one size: --size HEIGHT WIDTH without '
            '--dynamic-size'
        ) from error


@contextmanager
def _resize_to_open_sizes() -> Iterator[None]:
    """Let mmseg's ``resize`` and ``Upsample`` leave sizes open, while a graph is traced.

    Both convert sizes to integers, which the tracer takes as constants: ``resize`` only to give
    advice on sizes. Modules of mmseg import it by name, so that it must stay the same object; the
    default of its argument ``warning`` is changed instead.
    """
    names = resize.__code__.co_varnames[: resize.__code__.co_argcount]
    before, forward = resize.__defaults__, Upsample.forward
    assert before is not None
    defaults = dict(zip(names[-len(before) :], before, strict=True))
    resize.__defaults__ = tuple(dict(defaults, warning=False).values())
    Upsample.forward = _upsample
    try:
        yield
    finally:
        resize.__defaults__, Upsample.forward = before, forward


def _upsample(self: Any, x: Tensor) -> Tensor:
    """As ``Upsample.forward``: (N, C, H, W) -> (N, C, factor * H, factor * W)."""
    factor = self.scale_factor
    if isinstance(factor, float) and factor.is_integer():
        factor = int(factor)
    size = self.size or [torch.sym_int(length * factor) for length in x.shape[-2:]]
    return resize(x, size, None, self.mode, self.align_corners)
