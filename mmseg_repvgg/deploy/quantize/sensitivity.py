"""Which convs lose most in int8: quantize one alone, in PyTorch, and compare the logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_repvgg.deploy.export_graph import logits_of
from mmseg_repvgg.deploy.quantize.quality import progress
from mmseg_repvgg.deploy.quantize.rounding import Scheme, round_maps, round_weights
from mmseg_repvgg.reparam.conv_inputs import ConvInputs


@dataclass(frozen=True)
class Sensitivity:
    """What quantizing one conv alone does to the logits."""

    name: str  # of the conv's module
    error: float  # norm of the change of the logits, relative to the norm of the logits
    flips: float  # share of the pixels that change their class


class QuantizedConvs(TorchDispatchMode):
    """While it is active, some convs compute with weights and inputs rounded to int8.

    Args:
        weights: Those of the convs.
        ranges: What the convs read on the calibration images.
        scheme: How to round.
    """

    def __init__(self, weights: Iterable[Tensor], ranges: ConvInputs, scheme: Scheme) -> None:
        super().__init__()
        self.ranges, self.scheme = ranges, scheme
        self.rounded = {id(w): round_weights(w.detach(), scheme) for w in weights}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation; a chosen conv with rounded arguments."""
        is_conv = func.overloadpacket is torch.ops.aten.convolution
        if is_conv and id(args[1]) in self.rounded:
            key = id(args[1])
            low = self.ranges.lowest[key].min().clamp(max=0)
            high = self.ranges.highest[key].max().clamp(min=0)
            x = round_maps(args[0], low, high, self.scheme.symmetric)
            args = (x, self.rounded[key], *args[2:])
        return func(*args, **(kwargs or {}))


def rank_layers(
    model: Any, images: Sequence[Tensor], scheme: Scheme, left_out: Iterable[str] = ()
) -> list[Sensitivity]:
    """Quantize one conv after the other, and compare the logits with those of float32.

    Args:
        model: A segmentor, fused, in eval mode.
        images: Normalised batches (N, C, H, W), which also give the ranges of feature maps.
        scheme: How to round.
        left_out: Names of weights that are in float anyway.

    Returns:
        The convs that ran, the most sensitive first.
    """
    convs, ranges = _record(model, images, left_out)
    groups = {name: [weight] for name, weight in convs.items()}
    layers = _compare(model, images, groups, ranges, scheme, 'sensitivity of every layer')
    return sorted(layers, key=lambda layer: -layer.error)


def simulate(
    model: Any, images: Sequence[Tensor], scheme: Scheme, left_out: Iterable[str] = ()
) -> float:
    """Quantize all convs; the arguments are those of :func:`rank_layers`.

    Returns:
        The norm of the change of the logits, relative to their norm.
    """
    convs, ranges = _record(model, images, left_out)
    groups = {'all': list(convs.values())}
    return _compare(model, images, groups, ranges, scheme, 'int8 simulated')[0].error


@torch.no_grad()
def _record(
    model: Any, images: Sequence[Tensor], left_out: Iterable[str]
) -> tuple[dict[str, Tensor], ConvInputs]:
    """The weights of the convs that run, by the name of their module, and what they read."""
    ranges, skipped = ConvInputs(), set(left_out)
    for batch in images:
        with ranges:
            logits_of(model, batch)
    convs = {
        name.removesuffix('.weight'): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in ranges.highest and name not in skipped
    }
    return convs, ranges


@torch.no_grad()
def _compare(
    model: Any,
    images: Sequence[Tensor],
    groups: Mapping[str, Sequence[Tensor]],
    ranges: ConvInputs,
    scheme: Scheme,
    what: str,
) -> list[Sensitivity]:
    """Quantize one group of weights after the other, and compare the logits."""
    squares, flips = dict.fromkeys(groups, 0.0), dict.fromkeys(groups, 0.0)
    norm = pixels = 0.0
    for batch in progress(images, what):
        expected = logits_of(model, batch)
        norm += float(expected.double().square().sum())
        pixels += expected[:, 0].numel()
        for name, weights in groups.items():
            with QuantizedConvs(weights, ranges, scheme):
                found = logits_of(model, batch)
            squares[name] += float((found - expected).double().square().sum())
            flips[name] += float((_classes(found) != _classes(expected)).sum())
    return [
        Sensitivity(name, (squares[name] / max(norm, 1e-30)) ** 0.5, flips[name] / pixels)
        for name in groups
    ]


def _classes(logits: Tensor) -> Tensor:
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0] > 0


def table(layers: Sequence[Sensitivity], count: int | None = None) -> str:
    """The first layers as text, one a line."""
    shown = layers[:count]
    width = max(len(layer.name) for layer in shown)
    return '\n'.join(
        f'{layer.name:<{width}}  {100 * layer.error:6.2f} % of the logits  '
        f'{100 * layer.flips:6.2f} % of the pixels'
        for layer in shown
    )
