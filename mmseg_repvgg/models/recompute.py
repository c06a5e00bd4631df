"""A conv and its BatchNorm that keep nothing between them for the backward pass.

The backward pass of a BatchNorm needs its input, which here is the output of a conv. The conv
keeps its own input and kernel anyway, so that its output can be computed again when it is wanted:
exactly, and for a 1x1 conv beside a 3x3 one in a thirtieth of the block's multiplications.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

SMALLEST = 2**18
"""Bytes of a map below which nothing worth the calls is saved."""


class _OutputOf:
    """Stands for the output of a conv in the graph.

    Args:
        node: The conv's node of the graph. What it keeps has whatever autocast made of input and
            kernel, and is refused by autograd if it was changed in place since.
    """

    def __init__(self, node: Any) -> None:
        self.node = node

    def compute(self) -> Tensor:
        """The output once more."""
        node = self.node
        x, weight = node._saved_input, node._saved_weight
        geometry = (
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            node._saved_groups,
        )
        with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
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
    y = conv(x)
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or _is_checkpointed():
        return norm(y)
    if not _is_of_a_conv(y) or y.nbytes < smallest:
        return norm(y)
    stand_in = _OutputOf(y.grad_fn)
    with ExitStack() as stack:
        try:
            stack.enter_context(_kept_as(y, stand_in))
        except RuntimeError:  # torch.func takes no such hooks
            return norm(y)
        return norm(y)


def _is_checkpointed() -> bool:
    """Whether this runs within ``torch.utils.checkpoint``, which computes all of it again itself.

    It lets what a node keeps be read once, so that another reader must stand back.
    """
    top: Any = getattr(torch._C._autograd, '_top_saved_tensors_default_hooks', None)
    hooks = top and top(True)
    return bool(hooks) and hooks[0].__module__ == checkpoint.__module__


def _is_of_a_conv(y: Tensor) -> bool:
    """Whether ``y`` comes straight from a conv without bias whose node keeps input and kernel."""
    node = y.grad_fn
    return (
        node is not None
        and node.name() == 'ConvolutionBackward0'
        and not any(node._saved_bias_sym_sizes_opt or ())  # type: ignore[attr-defined]
        and not node._saved_transposed  # type: ignore[attr-defined]
    )


def _kept_as(y: Tensor, stand_in: _OutputOf) -> saved_tensors_hooks:
    def pack(tensor: Tensor) -> Tensor | _OutputOf:
        return stand_in if tensor is y else tensor

    def unpack(kept: Tensor | _OutputOf) -> Tensor:
        return kept.compute() if isinstance(kept, _OutputOf) else kept

    return saved_tensors_hooks(pack, unpack)
