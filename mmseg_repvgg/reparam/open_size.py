"""Graphs of ``torch.export`` that leave the height and width of images open."""

from __future__ import annotations

import torch
from torch import Tensor


def has_open_size(x: Tensor) -> bool:
    """Whether ``torch.export`` traces a graph for any height or width of ``x`` (N, C, H, W)."""
    # first, for a Proxy of torch.fx has no shape to look at
    return torch.compiler.is_exporting() and any(
        isinstance(length, torch.SymInt) for length in x.shape[2:]
    )
