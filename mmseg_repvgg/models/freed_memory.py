"""Freed memory that stays with the process, for training on the CPU.

A training step frees its maps and asks for as many in the next step. Of maps of some megabytes
glibc gives the memory back to the system every time, which then has to clear every page anew: that
took 4 to 19 % of a step where it was measured (docs/training-cost.md).
"""

from __future__ import annotations

import ctypes
import os

# of glibc's malloc.h, see man mallopt
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1  # an int
VARIABLES = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'GLIBC_TUNABLES')
"""The user's own word on it."""

_kept = False


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, for its next use; at its most it takes what it took.

    It acts on all that the process allocates by glibc, once and for all, so that it is for programs
    and not for libraries to call: ``tools/train.py`` does if it trains on the CPU. With one of
    :data:`VARIABLES` set, or without glibc, nothing is changed.

    Returns:
        Whether it is so now.
    """
    global _kept
    if _kept or any(name in os.environ for name in VARIABLES):
        return _kept
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS; Windows
        return False
    _kept = all(mallopt(name, LARGEST) for name in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))
    return _kept


def is_kept() -> bool:
    """Whether :func:`keep_freed_memory` has acted."""
    return _kept
