"""Converts weights to another naming scheme (tools/convert_weights.py)."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import save

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint.names import SCHEMES, scheme_of, translate
from mmseg_repvgg.checkpoint.reading import CheckpointError, read_checkpoint, state_dict_of
from mmseg_repvgg.checkpoint.writing import STAMP, make_stamp, write_checkpoint

SUFFIXES = ('.pth', '.safetensors')


def convert_weights(source: str | Path, out: str | Path, to: str) -> str:
    """Write the weights of a checkpoint in another naming scheme.

    Args:
        source: A checkpoint with RepVGG weights, in training or fused form, in any scheme.
        out: The file to write, ``.pth`` or ``.safetensors``. A ``.pth`` holds the weights under
            ``state_dict``, where mmengine, timm and the official code look, and a stamp
            (:func:`mmseg_repvgg.checkpoint.writing.make_stamp`) under ``meta``; a
            ``.safetensors`` holds the stamp in its header.
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
    if out.suffix not in SUFFIXES:
        raise ValueError(f'OUT {str(out)!r} must end in {" or ".join(SUFFIXES)}')
    if out.resolve() == Path(source).resolve():
        raise ValueError(f'OUT {str(out)!r} is SOURCE itself; give another name')
    state = state_dict_of(read_checkpoint(source))
    found = scheme_of(state)
    if found is None:
        raise CheckpointError(
            f'{source} holds no RepVGG weights in the names of {", ".join(SCHEMES)}: the first '
            f'are {", ".join(list(state)[:3])}'
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
