"""Find the channels of a network that can be multiplied by a factor without changing its outputs.

Every output channel of a conv starts with a factor of its own. The network ties factors to each
other: both terms of a sum must have the same factor, and so must all pixels of a channel that a
conv reads. :class:`FactorTracer` follows every ATen operation while the network runs once. For each
tensor it keeps another one of the same shape, with the number of each element's factor. Operations
that only move elements are applied to the numbers as well. Operations that are linear, or
positively homogeneous like ReLU, pass them on. Every other operation fixes the factors of its
inputs to 1, which is factor 0; so are the factors of the outputs. Unknown operations are therefore
safe: what they read is not scaled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@dataclass
class TracedConv:
    """The parameters of a conv, and the numbers of the factors of its channels."""

    weight: nn.Parameter  # (C_out, C_in / groups, ...)
    bias: nn.Parameter | None
    outputs: Tensor  # (C_out,)
    inputs: Tensor  # (C_in,)
    groups: int

    def input_of_weights(self) -> Tensor:
        """The factor of the input channel that each weight multiplies: (C_out, C_in / groups)."""
        per_group = len(self.outputs) // self.groups
        return self.inputs.view(self.groups, -1).repeat_interleave(per_group, dim=0)

    def shares(self, factors: Tensor) -> bool:
        """Whether an input or output channel of the conv has one of these factors."""
        return bool(torch.isin(torch.cat([self.inputs, self.outputs]), factors).any())


class FactorTracer(TorchDispatchMode):
    """Follows the factors of channels while it is active; :meth:`solve` returns the convs."""

    def __init__(self) -> None:
        super().__init__()
        self.parents = [0]  # union-find: factor -> an equal one with a smaller number
        self.traced: dict[int, tuple[Tensor, Tensor]] = {}  # by id; holds the tensor to keep it
        self.convs: dict[int, TracedConv] = {}  # by id of the weight
        self.read: set[int] = set()  # storages that are read, but not as a conv's parameters

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation and note the factors of its result."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        is_conv = func.overloadpacket is aten.convolution
        if is_conv or any(id(t) in self.traced for t in tensors):
            factors = self._factors_of_result(func, result, args, kwargs)
            for part, of_part in factors:
                self.traced[id(part)] = part, of_part
            if is_conv and factors:
                tensors = tensors[:1]
            elif not factors:
                self.tie_to_one(*tensors)
        self.read |= {_storage(t) for t in tensors}
        return result

    def _factors_of_result(
        self, func: Any, result: Any, args: tuple, kwargs: dict
    ) -> list[tuple[Tensor, Tensor]]:
        """The tensors of a result with their factors; none if the operation is not known."""
        rule = RULES.get(func.overloadpacket)
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        floating = [t for t in pytree.tree_leaves((args, results)) if _is_floating(t)]
        is_cast = len({t.dtype for t in floating}) > 1
        is_empty = not all(t.numel() for t in floating)
        if rule is None or is_cast or is_empty or 'out' in func._overloadname:
            return []
        factors = rule(self, func, result, *args, **kwargs)
        several = factors if isinstance(factors, (list, tuple)) else [factors]
        return [] if factors is None else list(zip(results, several, strict=False))

    def of(self, tensor: Tensor) -> Tensor:
        """The factors of a tensor's elements, in its shape; 0 if it comes from no conv."""
        if id(tensor) in self.traced:
            return self.traced[id(tensor)][1]
        return torch.tensor(0).expand(tensor.shape)

    def root(self, factor: int) -> int:
        """The smallest factor that this one equals."""
        while self.parents[factor] != factor:
            factor = self.parents[factor]
        return factor

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Make factors equal, element by element with broadcasting."""
        a, b = torch.broadcast_tensors(a, b)
        for pair in torch.stack([a, b])[:, a != b].unique(dim=1).T.tolist():
            low, high = sorted(map(self.root, pair))
            self.parents[high] = low

    def tie_along(self, factors: Tensor, dims: Iterable[int]) -> Tensor:
        """Make factors equal along ``dims``, which have length 1 in the result."""
        one = factors.amin(tuple(dims), keepdim=True)
        self.tie(factors, one)
        return one

    def tie_to_one(self, *tensors: Tensor) -> None:
        """Fix the factors of tensors to 1."""
        for tensor in tensors:
            self.tie(self.of(tensor), torch.tensor(0))

    def is_fixed(self, factors: Tensor) -> bool:
        """Whether all factors are 1."""
        return not any(map(self.root, factors.unique().tolist()))

    def solve(self, outputs: Sequence[Tensor]) -> list[TracedConv]:
        """The convs in the order in which they ran; equal factors have equal numbers.

        Args:
            outputs: Outputs of the network; their factors are fixed to 1.
        """
        self.tie_to_one(*outputs)
        convs = list(self.convs.values())
        uses = Counter(_storage(p) for c in convs for p in (c.weight, c.bias) if p is not None)
        for conv in convs:
            own = {_storage(p) for p in (conv.weight, conv.bias) if p is not None}
            if own & self.read or any(uses[storage] > 1 for storage in own):
                self.tie(torch.cat([conv.inputs, conv.outputs]), torch.tensor(0))
        roots = torch.tensor([self.root(factor) for factor in range(len(self.parents))])
        for conv in convs:
            conv.inputs, conv.outputs = roots[conv.inputs], roots[conv.outputs]
        return convs


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


# The rules: (tracer, operation, its result, *its arguments) -> the factors of the result, in its
# shape, or None if its arguments must have factor 1


def _convolution(
    tracer: FactorTracer, _: Any, result: Tensor, x: Tensor, weight: Any, bias: Any, *geometry: Any
) -> Tensor | None:
    *_, transposed, _, groups = geometry
    are_parameters = all(isinstance(p, nn.Parameter) for p in (weight, bias) if p is not None)
    conv = tracer.convs.get(id(weight))
    is_other = conv is not None and (conv.bias is not bias or conv.groups != groups)
    if transposed or not are_parameters or is_other:
        return None
    inputs = tracer.tie_along(tracer.of(x), [dim for dim in range(x.dim()) if dim != 1]).flatten()
    if conv is None:
        outputs = torch.arange(len(weight)) + len(tracer.parents)
        tracer.parents += outputs.tolist()
        conv = tracer.convs[id(weight)] = TracedConv(weight, bias, outputs, inputs, groups)
    tracer.tie(conv.inputs, inputs)  # the same conv may run several times
    return conv.outputs.view(1, -1, *[1] * (x.dim() - 2)).expand(result.shape)


def _move(tracer: FactorTracer, func: Any, result: Any, *args: Any, **options: Any) -> Any:
    if func.overloadpacket in (aten.view, aten._unsafe_view):
        return tracer.of(args[0]).reshape(result.shape)  # the numbers may have other strides
    return func(*pytree.tree_map_only(Tensor, tracer.of, args), **options)


def _pad(tracer: FactorTracer, _: Any, result: Tensor, x: Tensor, pad: Any, value: Any = 0) -> Any:
    if value != 0:
        return None
    factors = tracer.of(x)  # 0 may have any factor: take that of the nearest pixel
    for dim, low in zip(reversed(range(x.dim())), pad[::2], strict=False):
        places = torch.arange(result.shape[dim]) - low
        factors = factors.index_select(dim, places.clamp(0, x.shape[dim] - 1))
    return factors


def _pointwise(
    tracer: FactorTracer, _: Any, result: Tensor, x: Tensor, *others: Any, **__: Any
) -> Any:
    return None if any(id(other) in tracer.traced for other in others) else tracer.of(x)


def _add(tracer: FactorTracer, _: Any, result: Tensor, x: Any, y: Any, **__: Any) -> Tensor | None:
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return None
    tracer.tie(tracer.of(x), tracer.of(y))
    return torch.broadcast_tensors(tracer.of(x), tracer.of(y))[0]


def _multiply(
    tracer: FactorTracer, func: Any, result: Tensor, x: Any, y: Any, **options: Any
) -> Any:
    if options:  # div may round
        return None
    if not isinstance(y, Tensor) or tracer.is_fixed(tracer.of(y)):
        return tracer.of(x).expand(result.shape)
    is_symmetric = func.overloadpacket is aten.mul
    return (
        tracer.of(y).expand(result.shape)
        if is_symmetric and tracer.is_fixed(tracer.of(x))
        else None
    )


def _matmul(tracer: FactorTracer, _: Any, result: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    if tracer.is_fixed(tracer.of(y)):
        return tracer.tie_along(tracer.of(x), [-1]).expand(result.shape)
    return (
        tracer.tie_along(tracer.of(y), [-2]).expand(result.shape)
        if tracer.is_fixed(tracer.of(x))
        else None
    )


def _pool(tracer: FactorTracer, _: Any, result: Any, x: Tensor, *__: Any) -> Tensor:
    pooled = result[0] if isinstance(result, tuple) else result  # max pooling also gives the places
    return tracer.tie_along(tracer.of(x), [-2, -1]).expand(pooled.shape)


def _mean(
    tracer: FactorTracer, _: Any, result: Tensor, x: Tensor, dim: Any = None, *__: Any, **___: Any
) -> Tensor:
    return tracer.tie_along(tracer.of(x), dim or range(x.dim())).reshape(result.shape)


def _constant(tracer: FactorTracer, _: Any, result: Tensor, *__: Any, **___: Any) -> Tensor:
    return torch.tensor(0).expand(result.shape)


NAMES: dict[Callable[..., Any], str] = {
    _convolution: 'convolution',
    _move: 'view _unsafe_view permute transpose t expand squeeze unsqueeze slice select split '
    'split_with_sizes unbind cat stack repeat',
    _pad: 'constant_pad_nd',
    _pointwise: 'relu relu_ leaky_relu leaky_relu_ _prelu_kernel clone detach alias _to_copy',
    _add: 'add add_ sub sub_',
    _multiply: 'mul mul_ div div_',
    _matmul: 'mm bmm',
    _pool: '_adaptive_avg_pool2d avg_pool2d max_pool2d_with_indices upsample_bilinear2d '
    'upsample_nearest2d upsample_bicubic2d',
    _mean: 'mean sum',
    _constant: 'new_ones new_zeros new_full ones_like zeros_like full_like',
}
RULES = {getattr(aten, name): rule for rule, names in NAMES.items() for name in names.split()}
