"""What a service must know about an exported model, stored in a JSON file next to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.deploy.description_checks import check_values

FORMATS = {'onnx': '.onnx', 'openvino': '.xml', 'mnn': '.mnn', 'torch': '.pt2'}
"""Formats of exported models and their file suffixes."""

SMALLEST_OF_ANY = 64
"""Smallest height and width of images of a model for all sizes: two pixels at a stride of 32."""


@dataclass(frozen=True)
class ModelDescription:
    """An exported network, the input it takes and the output it gives.

    The input is (N, channels, *size), float32. With ``dynamic_size`` its height and width are free,
    from :data:`SMALLEST_OF_ANY`, and ``size`` is only that of sliding windows. With
    ``preprocessing_inside`` the input holds BGR pixels as OpenCV reads them. Otherwise the caller
    reorders them to RGB (if ``to_rgb``) and normalises them: ``(x - mean) / std``. The output has
    the size of the input: (N, num_outputs, H, W) float32 logits, or with ``argmax_inside`` (N, H,
    W) integer class indices.

    Fields with a default were added later: files of older versions do not have them.

    Raises:
        ValueError: If a value is wrong; names the field, the value and what is allowed.
    """

    format: str  # one of FORMATS
    size: tuple[int, int]  # height, width in pixels
    dynamic_batch: bool  # N is free; otherwise it is 1
    preprocessing_inside: bool
    argmax_inside: bool
    mean: tuple[float, ...]  # in the order the network sees the channels
    std: tuple[float, ...]
    to_rgb: bool
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]  # RGB per class
    stride: tuple[int, int] | None  # step of sliding windows of `size`; None: whole images
    rewrites: tuple[str, ...]
    source_sha256: str  # of the checkpoint it was made from
    version: str  # of this package
    channels: int = 3  # of an image
    color_type: str = 'color'  # how image files are read, as in mmcv's imread
    resize: tuple[int, int] | None = None  # width, height; images are resized to it before windows
    keep_ratio: bool = True  # `resize` is the largest box, as in mmcv's Resize
    align_corners: bool = False  # when logits are resized to the image
    threshold: float | None = None  # one logit: label 1 if its sigmoid is larger; None: argmax
    left_out: tuple[str, ...] = ()  # transforms of the test pipeline that the caller must do
    model_sha256: str = ''  # of the model's own files; '' is not checked
    precision: str = 'fp32'  # of the weights: fp32, fp16 or int8
    # how it was quantized, for int8: images, settings, layers in float, quality
    quantization: Mapping[str, Any] | None = field(default=None, hash=False)
    dynamic_size: bool = False  # height and width are free

    def __post_init__(self) -> None:
        check_values(vars(self))

    @property
    def num_outputs(self) -> int:
        """The number of logits per pixel."""
        return len(self.classes) if self.threshold is None else 1

    @property
    def input_text(self) -> str:
        """The shape of the input, for messages."""
        if not self.dynamic_size:
            return f'(N, {self.channels}, {self.size[0]}, {self.size[1]})'
        return f'(N, {self.channels}, H, W), H and W at least {SMALLEST_OF_ANY}'

    def takes_size(self, height: int, width: int) -> bool:
        """Whether the network takes images of this size."""
        if self.dynamic_size:
            return min(height, width) >= SMALLEST_OF_ANY
        return (height, width) == self.size

    def write(self, model: str | Path) -> ModelDescription:
        """Write it next to the model file, with the hash of the model.

        Returns:
            The description that was written.

        Raises:
            OSError: If it cannot be written.
        """
        written = replace(self, model_sha256=_hash(model))
        with atomic_file(description_path(model)) as temporary:
            temporary.write_text(written.to_json(), encoding='utf-8')
        return written

    def to_json(self) -> str:
        """As JSON, with a field a line or more."""
        return json.dumps(asdict(self), indent=1) + '\n'

    @classmethod
    def from_json(cls, text: str) -> ModelDescription:
        """Read what :meth:`to_json` wrote; unknown fields, of later versions, are left out.

        Raises:
            ValueError: If it is something else.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f'it holds a {type(values).__name__}, not an object with fields')
        needed = [f.name for f in fields(cls) if f.default is MISSING]
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(f'it lacks {", ".join(missing)}')
        names = [f.name for f in fields(cls) if f.name in values]
        return cls(**{name: _to_tuple(values[name]) for name in names})

    @classmethod
    def read(cls, model: str | Path) -> ModelDescription:
        """Read the description next to a model file.

        Raises:
            FileNotFoundError: If the model or the JSON file is not there.
            ValueError: If :meth:`write` did not write the JSON file, or it describes another model.
        """
        path = description_path(model)
        for file in (Path(model), path):
            if not file.is_file():
                raise FileNotFoundError(
                    f'{file} not found: an exported model is the file that mmseg-repvgg export '
                    'wrote and the .json next to it; keep them together'
                )
        try:
            description = cls.from_json(path.read_text(encoding='utf-8'))
        except ValueError as error:
            raise ValueError(
                f'{path} is not what mmseg-repvgg export writes next to a model ({error}); export '
                'again'
            ) from error
        if description.model_sha256 and description.model_sha256 != _hash(model):
            raise ValueError(
                f'{path} describes another model than {model}: the SHA-256 of the file is not its '
                'model_sha256. Keep the two files of an export together, or export again; if you '
                'changed the model yourself, remove model_sha256 from the .json'
            )
        return description


def description_path(model: str | Path) -> Path:
    """``model.onnx`` -> ``model.onnx.json``."""
    return Path(f'{model}.json')


def weight_files(model: str | Path) -> list[Path]:
    """Files that may hold the weights of a model besides its own: .bin of .xml, or .onnx.data."""
    path = Path(model)
    return [path.with_suffix('.bin')] if path.suffix == '.xml' else [Path(f'{path}.data')]


def _hash(model: str | Path) -> str:
    """SHA-256 of the files of a model, one after the other."""
    digest = hashlib.sha256()
    for file in (Path(model), *weight_files(model)):
        if file.is_file():
            with file.open('rb') as stream:
                while block := stream.read(2**20):
                    digest.update(block)
    return digest.hexdigest()


def _to_tuple(value: Any) -> Any:
    return tuple(_to_tuple(v) for v in value) if isinstance(value, list) else value
