"""Warns of bfloat16 on CPUs that have no instructions for it."""

from __future__ import annotations

import warnings

import torch


def has_fast_convs() -> bool:
    """Whether oneDNN convolves bfloat16 on this CPU; True if PyTorch does not say.

    Without AVX-512 (or AMX, or ARM's bf16) PyTorch does not use oneDNN but a plain loop, for
    dilated and ordinary convs (PyTorch issue 183815). Measured on PyTorch 2.14.1 limited to AVX2,
    one thread, 64 channels of 64 x 64: 700 ms in bfloat16, 6 ms in float32.
    """
    ask = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
    return ask is None or not torch.backends.mkldnn.is_available() or bool(ask())


def warn_of_slow_half() -> None:
    """Warn if bfloat16 is slow here; call it before a run under autocast on a CPU."""
    if not has_fast_convs():
        warnings.warn(
            'this CPU has no instructions for bfloat16 convolutions: they run up to a hundred '
            'times slower than in float32. Leave mixed precision (--amp, fp16=True) out',
            stacklevel=3,
        )
