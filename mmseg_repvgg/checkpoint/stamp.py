"""The stamp on every checkpoint that this package writes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmseg_repvgg.checkpoint.identity import identify
from mmseg_repvgg.version import __version__

STAMP = 'mmseg_repvgg'
"""Its key in a checkpoint's ``meta``, and in the header of a safetensors file."""


def make_stamp(state: Mapping[str, Tensor], source: str | Path, **more: Any) -> dict[str, Any]:
    """Say what weights are and where they come from.

    Args:
        state: The weights that are written.
        source: The file that they were made from.
        **more: What else is to be kept; str, numbers and lists of them.

    Returns:
        ``form`` (``training``, ``deploy``, or None without RepVGG blocks), ``architecture``,
        ``scheme`` of the names, ``versions``, ``source_sha256``.
    """
    found = identify(state)
    return dict(
        form=found.form,
        architecture=found.arch,
        scheme=found.scheme,
        versions={STAMP: __version__, 'torch': str(torch.__version__)},
        source_sha256=sha256(source),
        **more,
    )


def sha256(file: str | Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()
