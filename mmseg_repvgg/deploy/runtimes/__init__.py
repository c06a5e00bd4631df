"""Loading exported models: ``load_runtime('b2.onnx')(images)``; needs no OpenMMLab package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes.base import Runtime


@dataclass(frozen=True)
class RuntimeKind:
    """What a runtime needs and reads; the module of its name holds its class."""

    class_name: str
    needs: str  # the package to import
    formats: tuple[str, ...]  # of FORMATS


RUNTIMES: dict[str, RuntimeKind] = {
    'onnxruntime': RuntimeKind('OnnxRuntime', 'onnxruntime', ('onnx',)),
    'openvino': RuntimeKind('OpenVinoRuntime', 'openvino', ('openvino', 'onnx')),
    'mnn': RuntimeKind('MnnRuntime', 'MNN', ('mnn',)),
    'torch': RuntimeKind('TorchRuntime', 'torch', ('torch',)),
}
"""By name. The default is the first installed runtime that reads the file."""


def load_runtime(
    path: str | Path, runtime: str | None = None, threads: int | None = None, **options: Any
) -> Runtime:
    """Load an exported model and the description next to it.

    Args:
        path: The file that the command export wrote.
        runtime: One of :data:`RUNTIMES`; by default the first installed that reads the file.
        threads: How many threads a call uses; None: the runtime chooses.
        **options: See ``load`` of the runtime's class, such as ``device`` (by default ``'cpu'``)
            or ``winograd_level`` of MNN.

    Returns:
        The loaded model; call it on images.

    Raises:
        FileNotFoundError: If the model or its description is not there.
        ValueError: If ``runtime`` is unknown or cannot read the file, the file is damaged, or an
            option is wrong.
        RuntimeError: If the runtime is not installed.
    """
    path = Path(os.path.abspath(path))  # so that pickles work in another working folder
    info = ModelDescription.read(path)
    able = [name for name, kind in RUNTIMES.items() if info.format in kind.formats]
    if not able:
        raise ValueError(
            f'{path} has the format {info.format!r}, unknown to this version, which knows '
            f'{", ".join(FORMATS)}; export it again'
        )
    name = runtime or next(filter(is_installed, able), able[0])
    if name not in RUNTIMES:
        raise ValueError(f'runtime={runtime!r} is not known; use one of {", ".join(RUNTIMES)}')
    kind = RUNTIMES[name]
    if name not in able:
        raise ValueError(
            f'{name} cannot read {path}, a model of the format {info.format!r}; use '
            f'{" or ".join(able)}, or export again: mmseg-repvgg export ... '
            f'OUT{FORMATS[kind.formats[0]]}'
        )
    if threads is not None and threads < 1:
        raise ValueError(f'threads={threads} must be at least 1, or None')
    if not is_installed(name):
        raise RuntimeError(
            f'{path}: the runtime {name!r} needs the package {kind.needs}, which is not installed: '
            "pip install 'mmseg-repvgg[deploy]', or that package alone (python -m "
            'mmseg_repvgg.doctor says what is installed)'
        )
    loaded = getattr(import_module(f'{__name__}.{name}'), kind.class_name)
    known = list(signature(loaded.load).parameters)[1:]  # without self
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f'{name} has no option {", ".join(unknown)}; it has {", ".join(known)}')
    try:
        return loaded(path, info, threads, **options)
    except (ValueError, TypeError):  # a wrong option
        raise
    except Exception as error:  # each runtime raises its own type
        reason = ' '.join(str(error).split())
        raise ValueError(
            f'{name} cannot read {path}: {reason}. The file is damaged, or of another version of '
            f'{kind.needs}; export it again'
        ) from error


def is_installed(runtime: str) -> bool:
    """Whether the package of a runtime is installed; does not import it."""
    return find_spec(RUNTIMES[runtime].needs) is not None


def readers(model_format: str) -> list[str]:
    """The installed runtimes that read a format, the default first."""
    able = [name for name, kind in RUNTIMES.items() if model_format in kind.formats]
    return [name for name in able if is_installed(name)]
