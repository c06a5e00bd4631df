"""What a service must know of an exported model, kept in a JSON file beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mmseg_repvgg.atomic_files import atomic_file

FORMATS = {'onnx': '.onnx', 'openvino': '.xml', 'mnn': '.mnn', 'torch': '.pt2'}
"""The formats of exported models, and how their files end."""


@dataclass(frozen=True)
class ModelDescription:
    """The exported network and how its input is made and its output read.

    The input is (N, 3, *size), float32. With ``preprocessing_inside`` it holds the pixels 0..255 as
    OpenCV reads them, in BGR; otherwise pixels that the caller has put into RGB order (if
    ``to_rgb``) and normalised: ``(x - mean) / std``. The output is (N, len(classes), *size) float32
    logits, or with ``argmax_inside`` (N, *size) integer class indices.
    """

    format: str  # one of FORMATS
    size: tuple[int, int]  # height, width in pixels
    dynamic_batch: bool  # N is free; otherwise it is 1
    preprocessing_inside: bool
    argmax_inside: bool
    mean: tuple[float, float, float]  # in the order the network sees the channels
    std: tuple[float, float, float]
    to_rgb: bool
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB per class
    stride: tuple[int, int] | None  # step of sliding windows of `size`; None: whole images
    rewrites: tuple[str, ...]
    source_sha256: str  # of the checkpoint it was made from
    version: str  # of this package

    def write(self, model: str | Path) -> None:
        """Write it beside the model file.

        Raises:
            OSError: If it cannot be written.
        """
        with atomic_file(description_path(model)) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, model: str | Path) -> ModelDescription:
        """Read what lies beside the model file.

        Raises:
            FileNotFoundError: If the model or the JSON file is not there.
            ValueError: If the JSON file is not one that :meth:`write` made.
        """
        path = description_path(model)
        for file in (Path(model), path):
            if not file.is_file():
                raise FileNotFoundError(
                    f'{file} not found: an exported model is the file that tools/export.py wrote '
                    'and the .json beside it; keep them together'
                )
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
            return cls(**{f.name: _frozen(values[f.name]) for f in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path} is not what tools/export.py writes beside a model ({error!r}); '
                'export again'
            ) from error


def description_path(model: str | Path) -> Path:
    """``model.onnx`` -> ``model.onnx.json``."""
    return Path(f'{model}.json')


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
