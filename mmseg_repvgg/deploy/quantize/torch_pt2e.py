"""PyTorch files in int8, by torchao's quantization of exported programs (PT2E)."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import Dim

from mmseg_repvgg.deploy.quantize.options import Int8Options, check_found
from mmseg_repvgg.deploy.quantize.pictures import Images
from mmseg_repvgg.deploy.write_formats import write_torch

SOURCES = {
    'aten.conv2d.default': torch.nn.Conv2d,
    'aten.relu.default': torch.nn.ReLU,
    'aten.relu_.default': torch.nn.ReLU,
}
"""The modules that operators come from, by which torchao finds them; files do not hold them."""


def quantize_torch(
    source: Path,
    out: Path,
    inputs: Images,
    options: Int8Options,
    in_float: Iterable[np.ndarray] = (),
) -> None:
    """Write an int8 version of a float32 file, for PyTorch's compiler on x86 CPUs.

    Weights are symmetric int8 in 8 bits, or in 7 that cannot saturate the 16-bit sums of CPUs
    without VNNI. Feature maps are uint8 with any zero point. The compiler turns a conv, its ReLU
    and the rounding around them into one kernel of oneDNN.

    Args:
        source: The float32 file.
        out: Where to write.
        inputs: Images (1, C, H, W) float32 as the file takes them.
        options: See :class:`Int8Options`.
        in_float: Weights of convs that stay in float.

    Raises:
        RuntimeError: If torchao is not installed.
    """
    if find_spec('torchao') is None:
        raise RuntimeError(
            "int8 for .pt2 needs torchao: pip install 'mmseg-repvgg[int8]', or that package alone"
        )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    program = torch.export.load(source)
    (name,) = program.graph_signature.user_inputs
    (node,) = (n for n in program.graph.nodes if n.name == name)
    wanted = {np.ascontiguousarray(weight, np.float32).tobytes() for weight in in_float}
    network = program.module()
    for operation in network.graph.nodes:
        module = SOURCES.get(str(operation.target))
        if module is not None:
            operation.meta['source_fn_stack'] = [(operation.name, module)]
    with torch.no_grad():
        prepared = prepare_pt2e(network, _quantizer(options, wanted))
        for index in range(len(inputs)):
            prepared(torch.from_numpy(inputs[index]))
        converted = convert_pt2e(prepared)
        _drop_unused(converted)
        shape = node.meta['val'].shape
        open_axes = {a: size for a, size in enumerate(shape) if not isinstance(size, int)}
        dynamic = {axis: _range(program, size) for axis, size in open_axes.items()}
        # not int(size), which would fix it
        sizes = [size if isinstance(size, int) else size.node.hint for size in shape]
        rounded = torch.export.export(converted, (torch.zeros(sizes),), dynamic_shapes=(dynamic,))
    write_torch(rounded, out, '')


def _drop_unused(graph: Any) -> None:
    """Delete the weights in float32 of which the graph now holds the rounded ones."""
    used = {str(node.target) for node in graph.graph.nodes if node.op == 'get_attr'}
    for name, _ in list(graph.named_parameters()):
        if name not in used:
            parent, _, leaf = name.rpartition('.')
            delattr(graph.get_submodule(parent), leaf)


def _range(program: Any, size: Any) -> Any:
    """The sizes that a symbolic axis of a program takes."""
    return Dim.DYNAMIC(min=int(program.range_constraints[size.node.expr].lower))


def _quantizer(options: Int8Options, in_float: set[bytes]) -> Any:
    """Torchao's quantizer of x86 CPUs, which leaves convs with some weights as they are."""
    from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
    from torchao.quantization.pt2e.quantizer import QuantizationSpec
    from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        QuantizationConfig,
        X86InductorQuantizer,
    )

    class OneScale(PerChannelMinMaxObserver):
        """The same scale for every channel: the compiler knows only lists of scales."""

        min_val: Tensor
        max_val: Tensor

        def calculate_qparams(self) -> Any:
            self.min_val = self.min_val.amin().expand_as(self.min_val).contiguous()
            self.max_val = self.max_val.amax().expand_as(self.max_val).contiguous()
            return super().calculate_qparams()

    class Quantizer(X86InductorQuantizer):
        def annotate(self, model: Any) -> Any:
            model = super().annotate(model)
            found = set()
            for node in model.graph.nodes:
                if SOURCES.get(str(node.target)) is not torch.nn.Conv2d:
                    continue
                weight = _weight(model, node.args[1])
                if weight in in_float:
                    found.add(weight)
                    for part in (node, *node.users):  # a conv and its ReLU are one pattern
                        part.meta.pop(Q_ANNOTATION_KEY, None)
            check_found(in_float, found)
            return model

    steps = 127 if options.weight_bits == 8 else 64
    maps = QuantizationSpec(
        dtype=torch.uint8,
        quant_min=0,
        quant_max=255,
        qscheme=torch.per_tensor_affine,
        observer_or_fake_quant_ctr=MinMaxObserver,
    )
    observer = OneScale if options.per_tensor else PerChannelMinMaxObserver
    weights = QuantizationSpec(
        dtype=torch.int8,
        quant_min=-steps,
        quant_max=steps,
        qscheme=torch.per_channel_symmetric,
        ch_axis=0,
        observer_or_fake_quant_ctr=observer,
    )
    return Quantizer().set_global(QuantizationConfig(maps, maps, weights, None, False))


def _weight(model: Any, node: Any) -> bytes:
    """The content of a weight of a graph."""
    tensor = model
    for name in str(node.target).split('.'):
        tensor = getattr(tensor, name)
    return tensor.detach().numpy().tobytes()
