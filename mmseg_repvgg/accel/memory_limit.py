"""How much memory this process may use: what its container allows, or what the machine has."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

ASSUMED = 4 * 2**30
"""Bytes of memory where ``os.sysconf`` does not tell."""
CGROUPS = Path('/sys/fs/cgroup')
OWN_CGROUPS = Path('/proc/self/cgroup')


def memory_limit() -> int:
    """Bytes that this process may use: the lowest of all limits that apply."""
    limits = [_physical_memory()]
    for folder, file in _cgroups():
        for group in (folder, *folder.parents):  # the limits of parent groups apply as well
            # not all of the path exists inside a container; without a limit the text is 'max'
            with contextlib.suppress(OSError, ValueError):
                limits.append(int((group / file).read_text()))
    return min(limits)


def _physical_memory() -> int:
    try:
        return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    except (AttributeError, ValueError, OSError):  # Windows; a system without these names
        return ASSUMED


def _cgroups() -> Iterator[tuple[Path, str]]:
    """The memory control groups of this process, and the names of their limit files."""
    with contextlib.suppress(OSError):
        for line in OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(':', 2)
            if not controllers:
                yield CGROUPS / path.lstrip('/'), 'memory.max'
            elif 'memory' in controllers.split(','):
                yield CGROUPS / 'memory' / path.lstrip('/'), 'memory.limit_in_bytes'
