"""A model repository of NVIDIA's Triton Inference Server from an exported model.

The layout and the names of the fields are those of Triton's documentation
(``model_repository.md``, ``model_configuration.md``) and of its schema, ``model_config.proto``.
Triton itself is not run here.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mmseg_repvgg.atomic_files import sweep, temporary_folder, writable_folder
from mmseg_repvgg.deploy.model_description import (
    FORMATS,
    ModelDescription,
    description_path,
    weight_files,
)

BACKENDS = {'onnx': 'onnxruntime', 'openvino': 'openvino'}
"""Triton's backend by format."""

MAX_BATCH = 8
"""Most images that Triton puts into one call, if the model takes any number."""

OPEN = -1
"""A side of any length, in Triton's dims."""


def check_repository(model: str | Path, repository: str | Path) -> None:
    """Check that a model that is still to be exported can go into a repository.

    Raises:
        ValueError: If Triton has no backend for its format, or the repository has a model of this
            name.
    """
    suffixes = [FORMATS[name] for name in BACKENDS]
    if Path(model).suffix not in suffixes:
        raise ValueError(
            f'OUT {str(model)!r} cannot go into a Triton repository: Triton has backends for '
            f'{" and ".join(suffixes)}'
        )
    folder = Path(repository) / Path(model).stem
    if folder.exists():
        raise ValueError(
            f'{folder} exists: remove it, or give another folder or another name of OUT'
        )


def write_repository(model: str | Path, repository: str | Path) -> Path:
    """Copy an exported model into a model repository, with its configuration and labels.

    Writes ``NAME/config.pbtxt``, ``NAME/labels.txt``, ``NAME/description.json`` and the model in
    ``NAME/1``, where NAME is that of the file without its suffix; all of it or nothing.

    Args:
        model: The exported file, with its .json next to it.
        repository: The folder that Triton gets as ``--model-repository``; others' models stay.

    Returns:
        The folder of the model.

    Raises:
        FileNotFoundError: If the model or its description is not there.
        ValueError: As :func:`check_repository`.
        OSError: If it cannot be written.
    """
    path = Path(model)
    info = ModelDescription.read(path)
    check_repository(path, repository)
    root = writable_folder(repository)
    sweep(root)
    with tempfile.TemporaryDirectory(prefix=temporary_folder(root)) as temporary:
        folder = Path(temporary) / path.stem
        version = folder / '1'
        version.mkdir(parents=True)
        shutil.copyfile(path, version / f'model{path.suffix}')
        for weights in filter(Path.is_file, weight_files(path)):
            # an .xml names no file; an .onnx names the one with its weights
            name = 'model.bin' if path.suffix == '.xml' else weights.name
            shutil.copyfile(weights, version / name)
        shutil.copyfile(description_path(path), folder / 'description.json')
        labels = '\n'.join(' '.join(name.split()) for name in info.classes) + '\n'
        (folder / 'labels.txt').write_text(labels, encoding='utf-8')
        (folder / 'config.pbtxt').write_text(configuration(info, path.stem), encoding='utf-8')
        os.rename(folder, root / path.stem)
    return root / path.stem


def configuration(info: ModelDescription, name: str) -> str:
    """The text of a ``config.pbtxt``.

    Args:
        info: Of the model.
        name: Of the model; it must be that of its folder.
    """
    sides = (OPEN, OPEN) if info.dynamic_size else info.size
    planes = () if info.argmax_inside else (info.num_outputs,)
    # without a maximum, the batch is one of the dims
    batch = () if info.dynamic_batch else (1,)
    output, kind = ('labels', 'TYPE_INT32') if info.argmax_inside else ('logits', 'TYPE_FP32')
    blocks = [
        f'name: {json.dumps(name)}',
        f'backend: "{BACKENDS[info.format]}"',
        f'max_batch_size: {MAX_BATCH if info.dynamic_batch else 0}',
        _tensor('input', 'images', 'TYPE_FP32', (*batch, info.channels, *sides)),
        _tensor('output', output, kind, (*batch, *planes, *sides), 'label_filename: "labels.txt"'),
    ]
    if info.dynamic_batch:
        blocks.append('dynamic_batching { }')
    return '\n'.join(blocks) + '\n'


def _tensor(field: str, name: str, kind: str, dims: Sequence[int], *more: str) -> str:
    lines = [f'name: "{name}"', f'data_type: {kind}', f'dims: [ {", ".join(map(str, dims))} ]']
    return '\n'.join(
        [f'{field} [', '  {', *(f'    {line}' for line in (*lines, *more)), '  }', ']']
    )
