"""Check that TensorRT supports an ONNX file. TensorRT itself is not run here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

# The rows marked "Y" in docs/operators.md of onnx/onnx-tensorrt, which is TensorRT's own parser, at
# commit 96e7811 (release 10.1-GA).
OPERATORS = frozenset(
    """
    Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization
    Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh
    CumSum DeformConv DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand
    EyeLike Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool
    GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization GRU Hardmax
    HardSigmoid HardSwish Identity If ImageScaler InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool LRN
    LSTM MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
    NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu QuantizeLinear
    RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1
    ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare Relu Reshape Resize ReverseSequence RNN RoiAlign Round ScaledTanh Scan
    Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Upsample Where Xor
    """.split()  # noqa: SIM905
)
"""The ONNX operators that TensorRT 10 supports."""

QUANTIZING = ('QuantizeLinear', 'DequantizeLinear')
"""Their zero points must be 0 (same source)."""

OPSETS = range(9, 21)
"""The opsets that TensorRT 10 supports (same source)."""

RESIZES = {
    'mode': ('nearest', 'linear'),
    'coordinate_transformation_mode': (
        *('half_pixel', 'pytorch_half_pixel', 'tf_half_pixel_for_nn'),
        *('asymmetric', 'align_corners'),
    ),
}
"""The values that TensorRT 10 supports of attributes of Resize (same source). ONNX's defaults are
among them."""


def check_tensorrt(path: Path) -> None:
    """Check that TensorRT's parser supports an ONNX file, according to its documentation.

    Raises:
        ValueError: If it does not; lists the operators.
    """
    model = onnx.load(str(path), load_external_data=False)
    found = sorted(set(_unsupported(model, path.parent)))
    if found:
        raise ValueError(
            f'TensorRT does not support {", ".join(found)} of this network. Export with '
            '--no-tensorrt for the other runtimes, or change the head'
        )


def _unsupported(model: onnx.ModelProto, folder: Path) -> Iterator[str]:
    for opset in model.opset_import:
        if opset.domain not in ('', 'ai.onnx'):
            yield f'operators of {opset.domain}'
        elif opset.version not in OPSETS:
            yield f'opset {opset.version}'
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    constants = {'', *tensors}  # '' is an omitted input
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            yield node.op_type
        elif node.op_type in QUANTIZING and not all(
            name in tensors and not onnx.numpy_helper.to_array(tensors[name], str(folder)).any()
            for name in node.input[2:3]
        ):
            yield f'{node.op_type} with a zero point (export with --symmetric)'
        elif node.op_type == 'Resize':
            yield from _unsupported_resize(node)
        elif node.op_type in ('Pad', 'Slice') and not constants.issuperset(node.input[3:4]):
            yield f'{node.op_type} with computed axes'


def _unsupported_resize(node: Any) -> Iterator[str]:
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    for name, allowed in RESIZES.items():
        if name in values and values[name].decode() not in allowed:
            yield f'Resize with {name}={values[name].decode()}'
    if values.get('antialias', 0):
        yield 'Resize with antialias'
