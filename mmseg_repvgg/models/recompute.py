"""A conv and its BatchNorm that keep nothing between them for the backward pass.

The backward pass of a BatchNorm needs its input, which here is the output of a conv. The conv
keeps its own input and kernel anyway, so that its output can be computed again when it is wanted:
exactly, and for a 1x1 conv beside a 3x3 one in a thirtieth of the block's multiplications.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.models.batch_statistics import normed
from mmseg_repvgg.models.pointwise import pointwise
from mmseg_repvgg.models.stand_in import can_stand_in, kept_as

SMALLEST = 2**18
"""Bytes of a map below which nothing worth the calls is saved."""

PRODUCT = 'BmmBackward0'
"""The node of :func:`mmseg_repvgg.models.pointwise.pointwise`'s matrix product."""


class _OutputOf:
    """Stands for the output of a conv in the graph.

    Args:
        node: The conv's node of the graph, of :func:`_producer`. What it keeps has whatever
            autocast made of input and kernel, and is refused by autograd if it was changed in
            place since.
        shape: Of the output.
    """

    def __init__(self, node: Any, shape: torch.Size) -> None:
        self.node, self.shape = node, shape

    def compute(self) -> Tensor:
        """The output once more."""
        node = self.node
        if node.name() == PRODUCT:
            kernels, maps = node._saved_self, node._saved_mat2
            with torch.no_grad():
                return torch.bmm(kernels, maps).view(self.shape)
        x, weight = node._saved_input, node._saved_weight
        geometry = (
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            node._saved_groups,
        )
        kind = x.device.type
        in_its_dtype: Any = nullcontext()
        if torch.amp.is_autocast_available(kind):
            in_its_dtype = torch.autocast(kind, enabled=False)
        with torch.no_grad(), in_its_dtype:
            return torch.conv2d(x, weight, None, *geometry)


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor, smallest: int = SMALLEST) -> Tensor:
    """``norm(conv(x))``; what ``norm`` would keep of its input is computed again in the backward.

    ``norm`` itself runs once, so that statistics, and what SyncBN sends between processes, are as
    ever. Where it cannot be so (no gradients wanted, a compiled or transformed function, a conv
    with bias) or is not worth it, the plain functions are called.

    Args:
        conv: A conv without bias.
        norm: Its BatchNorm.
        x: (N, C_in, H, W).
        smallest: Bytes of the conv's output below which it is kept.
    """
    y = pointwise(conv, x)
    node = _producer(y) if can_stand_in() else None
    if node is None or y.nbytes < smallest:
        return normed(norm, y)
    with kept_as((y, _OutputOf(node, y.shape))):
        return normed(norm, y)


def _producer(y: Tensor) -> Any:
    """The node of the conv without bias, or of the product, that ``y`` comes straight from."""
    node: Any = y.grad_fn
    if node is None:
        return None
    if node.name() == 'ViewBackward0' and node.next_functions[0][0].name() == PRODUCT:
        return node.next_functions[0][0]  # of pointwise
    is_plain_conv = (
        node.name() == 'ConvolutionBackward0'
        and not any(node._saved_bias_sym_sizes_opt or ())
        and not node._saved_transposed
    )
    return node if is_plain_conv else None
