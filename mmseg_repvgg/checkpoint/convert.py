"""Weights of one naming scheme -> a file in another (tools/convert_weights.py)."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file

from mmseg_repvgg.checkpoint.naming import SCHEMES, scheme_of, translate
from mmseg_repvgg.checkpoint.reading import (
    CheckpointError,
    read_checkpoint,
    state_dict_of,
    write_checkpoint,
)
from mmseg_repvgg.files import whole_file

SUFFIXES = ('.pth', '.safetensors')


def convert_weights(source: str | Path, out: str | Path, to: str) -> str:
    """Write the weights of a checkpoint in another naming scheme.

    Args:
        source: A checkpoint with RepVGG weights, in training or fused form, in any scheme.
        out: The file to write, ``.pth`` or ``.safetensors``. In our names a ``.pth`` holds the
            weights under ``state_dict``, as mmengine expects; in the others it holds them bare.
        to: ``ours`` (which is mmpretrain's too), ``official`` or ``timm``.

    Returns:
        One line that says what was done.

    Raises:
        CheckpointError: If ``source`` is not a checkpoint, or holds no RepVGG weights.
        ValueError: If ``out`` or ``to`` is not one of those.
        OSError: If ``out`` cannot be written.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f'OUT {str(out)!r} must end in {" or ".join(SUFFIXES)}')
    state = state_dict_of(read_checkpoint(source))
    found = scheme_of(state)
    if found is None:
        raise CheckpointError(
            f'{source} holds no RepVGG weights in the names of {", ".join(SCHEMES)}: its names '
            f'begin with {", ".join(list(state)[:3])}'
        )
    renamed = {name: t.contiguous() for name, t in translate(state, to).items()}
    if out.suffix == '.pth':
        write_checkpoint(dict(state_dict=renamed) if to == 'ours' else renamed, out)
    else:
        with whole_file(out) as temporary:
            save_file(renamed, temporary)
    return f'{len(renamed)} tensors: {source} ({found}) -> {out} ({to})'
