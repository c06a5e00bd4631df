"""Writes checkpoints that every reader loads, and converts them to other naming schemes."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint.names import identify, translate
from mmseg_repvgg.checkpoint.naming_schemes import SCHEMES, scheme_of
from mmseg_repvgg.checkpoint.reading import CheckpointError, read_checkpoint, state_dict_of
from mmseg_repvgg.checks import preview
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
        source_sha256=hashlib.sha256(Path(source).read_bytes()).hexdigest(),
        **more,
    )


def convert_weights(source: str | Path, out: str | Path, to: str) -> str:
    """Write the weights of a checkpoint in another naming scheme.

    Args:
        source: A checkpoint with RepVGG weights, in training or fused form, in any scheme.
        out: The file to write, ``.pth`` or ``.safetensors``. A ``.pth`` holds the weights under
            ``state_dict``, where mmengine, timm and the official code look, and a stamp
            (:func:`make_stamp`) under ``meta``; a ``.safetensors`` holds the stamp in its header.
        to: ``ours`` (also mmpretrain's), ``official`` or ``timm``.

    Returns:
        One line that says what was done.

    Raises:
        CheckpointError: If ``source`` is not a checkpoint, or holds no RepVGG weights.
        ValueError: If ``out`` has another suffix or is ``source``, or as
            :func:`mmseg_repvgg.checkpoint.names.translate`.
        OSError: If ``out`` cannot be written.
    """
    out = Path(out)
    if out.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'OUT {str(out)!r} must end in .pth or .safetensors')
    if out.resolve() == Path(source).resolve():
        raise ValueError(f'OUT {str(out)!r} is SOURCE itself; give another name')
    state = state_dict_of(read_checkpoint(source))
    found = scheme_of(state)
    if found is None:
        raise CheckpointError(
            f'{source} holds no RepVGG weights in the names of {", ".join(SCHEMES)}: the first '
            f'are {preview(state)}'
        )
    renamed = {name: t.contiguous() for name, t in translate(state, to).items()}
    stamp = make_stamp(renamed, source)
    if out.suffix == '.pth':
        write_checkpoint(dict(meta={STAMP: stamp}, state_dict=renamed), out)
    else:
        with atomic_file(out) as temporary:
            # not save_file: its errors do not give the reason of a disk error
            header = {'format': 'pt', STAMP: json.dumps(stamp)}
            temporary.write_bytes(save(renamed, header))
    return f'{len(renamed)} tensors: {source} ({found}) -> {out} ({to})'


def publish_weights(source: str | Path, folder: Path, stem: str) -> Path:
    """Write the weights of a training's checkpoint for others to download.

    Args:
        source: A checkpoint in any form that :func:`read_checkpoint` reads.
        folder: Where to write ``<stem>-<first 8 digits of the file's SHA-256>.pth``, the name by
            which PyTorch and mmengine check a download.
        stem: The beginning of the name.

    Returns:
        The file: the weights, and the names and colours of the classes if the checkpoint has them.

    Raises:
        CheckpointError: If ``source`` is not a checkpoint.
        OSError: If the file cannot be written.
    """
    checkpoint = read_checkpoint(source)
    state = state_dict_of(checkpoint)
    meta: dict[str, Any] = {STAMP: make_stamp(state, source)}
    classes = (checkpoint.get('meta') or {}).get('dataset_meta')
    if classes:
        meta['dataset_meta'] = {
            key: classes[key] for key in ('classes', 'palette') if key in classes
        }
    temporary = folder / f'{stem}.pth'
    write_checkpoint(dict(meta=meta, state_dict=dict(state)), temporary)
    digest = hashlib.sha256(temporary.read_bytes()).hexdigest()
    return temporary.rename(temporary.with_name(f'{stem}-{digest[:8]}.pth'))


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
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if type(key) not in PLAIN:
                raise CheckpointError(f'{where} has the key {key!r} of type {type(key).__name__}')
            _check_plain(item, f'{where}[{key!r}]', seen)
    elif kind not in (*PLAIN, Tensor, torch.nn.Parameter):
        raise CheckpointError(
            f'{where} is of type {kind.__module__}.{kind.__qualname__}, which not every reader '
            'loads. Allowed are tensors, str, int, float, bool and None in dicts, lists and tuples'
        )
