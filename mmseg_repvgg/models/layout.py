"""The layout of feature maps with which a block trains fastest on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out_for_training(x: Tensor, dilation: int) -> Tensor:
    """``x`` as (N, H, W, C) in memory for ordinary convs and as (N, C, H, W) for dilated ones.

    Wherever it lies so already, as between two blocks of one kind, nothing is copied. On a GPU, in
    another dtype than float32, and in compiled functions ``x`` is left as it is: there it was not
    measured (docs/training-cost.md).

    Args:
        x: (N, C, H, W), in any layout.
        dilation: Of the conv that takes it.
    """
    if x.device.type != 'cpu' or x.dtype != torch.float32 or torch.compiler.is_compiling():
        return x
    wanted = torch.channels_last if dilation == 1 else torch.contiguous_format
    return x.contiguous(memory_format=wanted)
