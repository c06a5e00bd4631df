"""Convert an exported float32 file to float16 weights, half its size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from mmseg_repvgg.deploy.model_description import ModelDescription, weight_files
from mmseg_repvgg.deploy.verify_export import Limits, Match
from mmseg_repvgg.deploy.write_formats import mnn_convert

HALF_LIMITS = Limits(relative=3e-2, agreement=0.99)
"""How much a float16 file may differ from PyTorch in float32. Weights are rounded to 11 bits; ONNX
files round feature maps too."""


def half_onnx(source: Path, out: Path) -> None:
    """Write ONNX that computes in float16; input and output stay float32.

    Where float16 has no implementation, as on CPUs, ONNX Runtime computes in float32.
    """
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    converted = convert_float_to_float16(onnx.load(str(source)), keep_io_types=True)
    model = OnnxModel(converted)
    model.topological_sort()  # the converter appends its casts
    onnx.checker.check_model(model.model)
    onnx.save(model.model, str(out))


def half_openvino(source: Path, out: Path) -> None:
    """Write OpenVINO with float16 weights; the device chooses the precision of the computation."""
    import openvino

    model = openvino.Core().read_model(str(source))
    openvino.save_model(model, str(out), compress_to_fp16=True)
    del model  # it keeps the file mapped


def half_mnn(source: Path, out: Path) -> None:
    """Write MNN with float16 weights; on CPUs it computes in float32.

    Raises:
        RuntimeError: If MNN's converter fails; holds its output.
    """
    mnn_convert('MNN', source, out, '--fp16')


HALF_WRITERS: dict[str, Callable[[Path, Path], None]] = {
    'onnx': half_onnx,
    'openvino': half_openvino,
    'mnn': half_mnn,
}
"""By format: a function that converts a float32 file."""


def check_half_format(model_format: str) -> None:
    """Check that a format can hold float16.

    Raises:
        ValueError: If not.
    """
    if model_format not in HALF_WRITERS:
        raise ValueError(
            f'fp16 is not written as {model_format}: give an OUT that ends in .onnx, .xml or .mnn, '
            'or call half() on the program in PyTorch'
        )


class HalfExport:
    """Replaces an exported float32 file by one in float16, after comparing it with PyTorch.

    Args:
        check: :func:`~.verify_export.verify`, to be called with the path and limits.
        tolerance: Replaces that of :data:`HALF_LIMITS`.
        agreement: Replaces that of :data:`HALF_LIMITS`.
    """

    def __init__(
        self, check: Callable[..., list[Match]], tolerance: float | None, agreement: float | None
    ) -> None:
        self.check = check
        self.limits = dict(
            tolerance=HALF_LIMITS.relative if tolerance is None else tolerance,
            agreement=HALF_LIMITS.agreement if agreement is None else agreement,
        )
        self.results: list[Match] = []
        self.notes: list[str] = []

    def __call__(self, written: Path, info: ModelDescription) -> ModelDescription:
        """Convert the file, and return the description of the new one.

        Raises:
            EquivalenceError: If it differs from PyTorch.
        """
        with replacing(written) as converted:
            HALF_WRITERS[info.format](written, converted)
            info = replace(info, precision='fp16').write(converted)
            self.results = self.check(converted, **self.limits)
        return info


@contextmanager
def replacing(written: Path) -> Iterator[Path]:
    """Give a path in another folder, whose files replace those of ``written`` at the end."""
    folder = written.parent / 'converted'
    folder.mkdir()
    yield folder / written.name
    for old in weight_files(written):
        old.unlink(missing_ok=True)
    for file in folder.iterdir():
        os.replace(file, written.with_name(file.name))
    folder.rmdir()
