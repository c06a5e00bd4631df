"""Writing checkpoints that every reader loads, with a stamp that says what they hold."""

from __future__ import annotations

import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint.names import identify
from mmseg_repvgg.checkpoint.reading import CheckpointError
from mmseg_repvgg.version import __version__

PLAIN = (str, int, float, bool, type(None))
STAMP = 'mmseg_repvgg'
"""Key of the stamp in a checkpoint's ``meta``, and in the header of a safetensors file."""


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that ``torch.load(path, weights_only=True)`` reads anywhere.

    The file appears only when it is complete; if writing fails, an existing file is kept.

    Args:
        checkpoint: Tensors, str, int, float, bool and None in dicts, lists and tuples.
        path: The file to write; its folder must exist.

    Raises:
        CheckpointError: If ``checkpoint`` holds anything else; the message says where.
        OSError: If the file cannot be written: no such folder, no permission, disk full.
    """
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'a checkpoint is a dict, not {type(checkpoint).__name__}')
    _check_plain(checkpoint, 'checkpoint')
    content = io.BytesIO()  # in memory first: torch's zip writer hides the reason of a disk error
    torch.save(checkpoint, content)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def make_stamp(state: Mapping[str, Tensor], source: str | Path, **more: Any) -> dict[str, Any]:
    """Describe weights and where they come from.

    Args:
        state: The weights to write.
        source: The file that they were made from.
        **more: Further entries: str, numbers and lists of them.

    Returns:
        ``form`` (``training``, ``deploy``, or None without RepVGG blocks), ``architecture``,
        ``scheme`` of the names, ``versions``, ``source_sha256``, and ``more``.
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


def _check_plain(value: Any, where: str, seen: set[int] | None = None) -> None:
    """Raise CheckpointError unless ``torch.load(weights_only=True)`` will read ``value``.

    Types are compared exactly: ``numpy.float64`` is a ``float``, but is not pickled as one.
    """
    kind = type(value)
    seen = set() if seen is None else seen
    if kind in (dict, OrderedDict, list, tuple):
        if id(value) in seen:
            return
        seen.add(id(value))
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in PLAIN:
                raise CheckpointError(f'{where} has the key {key!r} of type {type(key).__name__}')
            _check_plain(item, f'{where}[{key!r}]', seen)
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f'{where}[{index}]', seen)
    elif kind not in (*PLAIN, Tensor, torch.nn.Parameter):
        raise CheckpointError(
            f'{where} is of type {kind.__module__}.{kind.__qualname__}, which not every reader '
            'loads. Allowed are tensors, str, int, float, bool and None in dicts, lists and tuples'
        )
