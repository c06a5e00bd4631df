"""Half precision on CPUs that have no instructions for it."""

from __future__ import annotations

import warnings
from functools import cache

import torch
from torch import Tensor

FAST_IF = {
    torch.bfloat16: '_is_mkldnn_bf16_supported',
    torch.float16: '_is_mkldnn_fp16_supported',
}
"""Whether oneDNN has convolutions of a dtype for this CPU: operators of ``torch.ops.mkldnn``."""


def warn_of_slow_half(x: Tensor) -> None:
    """Warn once that convolutions of the dtype of ``x``, or of autocast, are slow on this CPU.

    Without AVX-512 (or AMX, or ARM's bf16) PyTorch leaves oneDNN and falls to a plain loop, for
    dilated and ordinary convs alike (PyTorch issue 183815): measured on PyTorch 2.14.1 held to
    AVX2, one thread, 64 channels of 64 x 64: 700 ms in bfloat16 where float32 takes 6.
    """
    if x.device.type != 'cpu' or torch.compiler.is_compiling():
        return
    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
    if dtype in FAST_IF and not has_fast_convs(dtype):
        _warn(dtype)


@cache
def has_fast_convs(dtype: torch.dtype) -> bool:
    """Whether this CPU convolves ``dtype`` by oneDNN; True where PyTorch does not tell."""
    ask = getattr(torch.ops.mkldnn, FAST_IF[dtype], None)
    return ask is None or not torch.backends.mkldnn.is_available() or bool(ask())


@cache  # once a process
def _warn(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix('torch.')
    warnings.warn(
        f'this CPU has no instructions for {name} convolutions: they are computed without oneDNN, '
        'up to a hundred times slower than in float32. Call model.float(), and leave autocast out',
        stacklevel=4,
    )
