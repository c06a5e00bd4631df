"""ONNX files in int8, with QuantizeLinear and DequantizeLinear, by ONNX Runtime's quantizer."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from mmseg_repvgg.deploy.export_graph import INPUT
from mmseg_repvgg.deploy.quantize.options import Int8Options, check_found
from mmseg_repvgg.deploy.quantize.pictures import Images
from mmseg_repvgg.deploy.quantize.quality import progress

WEIGHTED = ('Conv', 'ConvTranspose', 'Gemm')
"""Operators whose weights are quantized."""

IN_INT8 = (
    *WEIGHTED,
    *('Relu', 'Clip', 'MaxPool', 'Add', 'Mul', 'Concat', 'Split'),
    *('Pad', 'Reshape', 'Transpose', 'Slice', 'Squeeze', 'Unsqueeze', 'Flatten'),
)
"""Operators that run in int8. Matrix products (of pooling pyramids) and Resize stay in float: they
cost little, and their rounding would blur the logits."""

MAX_BYTES = 2**31 - 2**24
"""Largest float32 file, because protobuf messages are limited to 2 GB."""


def quantize_onnx(
    source: Path,
    out: Path,
    inputs: Images,
    options: Int8Options,
    in_float: Iterable[np.ndarray] = (),
) -> None:
    """Write an int8 version of a float32 file.

    Weights are symmetric int8 in 8 bits, or in 7 (-64 to 64) that cannot saturate the 16-bit sums
    of CPUs without VNNI. By default feature maps are uint8 with any zero point, so that those after
    ReLU use all 256 steps, and the output of a conv and its ReLU is quantized once: ONNX Runtime
    then runs them as one QLinearConv. With ``options.symmetric`` maps are int8 with zero points of
    0, only the inputs and weights of convs are quantized and biases stay float, as TensorRT
    requires.

    Args:
        source: The float32 file.
        out: Where to write.
        inputs: Images (1, C, H, W) float32 as the file takes them.
        options: See :class:`Int8Options`.
        in_float: Weights of convs that stay in float.

    Raises:
        ValueError: If the file is above 2 GB.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if source.stat().st_size > MAX_BYTES or Path(f'{source}.data').exists():
        raise ValueError(f'{source.name} is above 2 GB in float32, which cannot be quantized')
    methods = {
        'min-max': CalibrationMethod.MinMax,
        'percentile': CalibrationMethod.Percentile,
        'entropy': CalibrationMethod.Entropy,
    }
    symmetric: dict[str, Any] = {}
    if options.symmetric:
        symmetric = dict(QuantizeBias=False, OpTypesToExcludeOutputQuantization=list(WEIGHTED))
    with tempfile.TemporaryDirectory() as folder, _silenced():
        prepared = Path(folder) / 'prepared.onnx'
        # PyTorch's exporter writes all shapes, so that none have to be inferred from symbols
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(out),
            _Reader(inputs),
            op_types_to_quantize=list(WEIGHTED if options.symmetric else IN_INT8),
            nodes_to_exclude=_nodes_with(prepared, in_float),
            per_channel=not options.per_tensor,
            reduce_range=options.weight_bits == 7,
            activation_type=QuantType.QInt8 if options.symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[options.calibrator],
            extra_options=dict(
                ActivationSymmetric=options.symmetric,
                CalibStridedMinMax=1,  # images one by one: all maps of all would not fit in memory
                **symmetric,
            ),
        )
    _drop_unused_domains(out)


def _drop_unused_domains(path: Path) -> None:
    """Remove ONNX Runtime's own domains, which its optimizer adds to every file."""
    model = onnx.load(str(path))
    used = {node.domain or '' for node in model.graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    onnx.save(model, str(path))


def _nodes_with(path: Path, weights: Iterable[np.ndarray]) -> list[str]:
    """Name nodes and return the names of those that have one of the weights."""
    model = onnx.load(str(path))
    wanted = [np.ascontiguousarray(weight, np.float32).tobytes() for weight in weights]
    kept = {
        tensor.name: content
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
        and (content := numpy_helper.to_array(tensor).tobytes()) in wanted
    }
    read = {name for n in model.graph.node if n.op_type in WEIGHTED for name in n.input}
    check_found(wanted, [content for name, content in kept.items() if name in read])
    for number, node in enumerate(model.graph.node):
        node.name = node.name or f'{node.op_type}_{number}'
    onnx.save(model, str(path))
    return [
        n.name for n in model.graph.node if n.op_type in WEIGHTED and kept.keys() & set(n.input)
    ]


class _Reader:
    """Gives ONNX Runtime's calibrator the images."""

    def __init__(self, inputs: Images) -> None:
        self.inputs = inputs
        self.order = iter(progress(range(len(inputs)), 'calibration'))

    def __len__(self) -> int:
        return len(self.inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        """The next call gives this image, and the one after that None."""
        self.next: int | None = next(self.order)
        assert (start_index, end_index) == (self.next, self.next + 1)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next image by the name of the input."""
        index, self.next = self.next, None
        return None if index is None else {INPUT: self.inputs[index]}


@contextlib.contextmanager
def _silenced() -> Any:
    """Keep what the calibrator prints for every image off the terminal."""
    import logging

    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)
