"""OpenVINO files in int8, by NNCF."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_repvgg.deploy.quantize.options import Int8Options, check_found
from mmseg_repvgg.deploy.quantize.pictures import Images

WEIGHTED = ('Convolution', 'GroupConvolution', 'ConvolutionBackpropData', 'MatMul')
"""OpenVINO's operators whose weights are quantized."""

IN_FLOAT = ('Interpolate',)
"""Operators that stay in float, as in ONNX files: the last one resizes the logits, whose rounding
moves the borders between classes. It costs no time that could be measured."""

OUTLIERS = 1e-5
"""Share of a feature map's values that the calibrator percentile cuts off on either side."""


def quantize_openvino(
    source: Path,
    out: Path,
    inputs: Images,
    options: Int8Options,
    in_float: Iterable[np.ndarray] = (),
) -> None:
    """Write an int8 version of a float32 file, with NNCF's correction of biases.

    The biases are corrected layer by layer, each with the layers before it in int8 (the slower of
    NNCF's two algorithms), on a fifth of the images. Weights are symmetric int8 in 8 bits, or in 7
    that cannot saturate the 16-bit sums of CPUs without VNNI (NNCF's ``overflow_fix``). Feature
    maps have any zero point.

    Args:
        source: The float32 file.
        out: Where to write.
        inputs: Images (1, C, H, W) float32 as the file takes them.
        options: See :class:`Int8Options`.
        in_float: Weights of convs that stay in float.

    Raises:
        RuntimeError: If NNCF is not installed.
    """
    nncf = _import_nncf()
    import openvino

    model = openvino.Core().read_model(str(source))
    names = _names_of(model, in_float)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(range(len(inputs)), inputs.__getitem__),
        preset=nncf.QuantizationPreset.MIXED,  # symmetric weights, asymmetric feature maps
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(inputs),
        fast_bias_correction=False,
        ignored_scope=nncf.IgnoredScope(names=names, types=list(IN_FLOAT), validate=False),
        advanced_parameters=_parameters(options),
    )
    openvino.save_model(quantized, str(out), compress_to_fp16=False)
    del model, quantized  # they keep the file mapped


def _import_nncf() -> Any:
    """Import NNCF such that it does not report its use over the network."""
    if find_spec('nncf') is None:
        raise RuntimeError(
            "int8 for OpenVINO needs nncf: pip install 'mmseg-repvgg[int8]', or that package alone"
        )
    name = 'NNCF_DEV'  # read once, when it is imported
    before = os.environ.get(name)
    os.environ[name] = '1'
    try:
        import nncf
    finally:
        if before is None:
            os.environ.pop(name)
        else:
            os.environ[name] = before
    nncf.set_log_level(logging.ERROR)
    return nncf


def _parameters(options: Int8Options) -> Any:
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        OverflowFix,
        QuantizationParameters,
    )
    from nncf.quantization.range_estimator import (
        AggregatorType,
        RangeEstimatorParameters,
        RangeEstimatorParametersSet,
        StatisticsCollectorParameters,
        StatisticsType,
    )

    ranges = RangeEstimatorParametersSet.MINMAX
    if options.calibrator == 'percentile':
        lowest, highest = (
            StatisticsCollectorParameters(
                statistics_type=StatisticsType.QUANTILE,
                aggregator_type=merge,
                quantile_outlier_prob=OUTLIERS,
            )
            for merge in (AggregatorType.MIN, AggregatorType.MAX)
        )
        ranges = RangeEstimatorParameters(lowest, highest)
    return AdvancedQuantizationParameters(
        overflow_fix=OverflowFix.ENABLE if options.weight_bits == 7 else OverflowFix.DISABLE,
        weights_quantization_params=QuantizationParameters(per_channel=not options.per_tensor),
        activations_range_estimator_params=ranges,
    )


def _names_of(model: Any, weights: Iterable[np.ndarray]) -> list[str]:
    """The names of the operations that have one of the weights."""
    wanted = {np.ascontiguousarray(weight, np.float32).tobytes() for weight in weights}
    if not wanted:
        return []
    names, found = [], set()
    for operation in model.get_ops():
        if operation.get_type_name() in WEIGHTED:
            held = wanted & {data.tobytes() for data in _constants(operation)}
            if held:
                names.append(operation.get_friendly_name())
                found |= held
    check_found(wanted, found)
    return names


def _constants(operation: Any) -> Iterator[np.ndarray]:
    """The constant arguments of an operation; those of groups are reshaped."""
    for i in range(operation.get_input_size()):
        node = operation.input_value(i).get_node()
        while node.get_type_name() in ('Reshape', 'Convert'):
            node = node.input_value(0).get_node()
        if node.get_type_name() == 'Constant':
            yield node.data.astype(np.float32)
