"""Cross-layer equalization by powers of two: the same outputs, with balanced ranges of weights.

If a conv is followed by ReLU, its output channel c may be divided by s > 0, as long as everything
that reads the channel multiplies it by s (Nagel et al. 2019, arXiv 1906.04721, section 4.1). Let r1
be the range of the weights that compute the channel, and r2 that of the weights that read it. With
s = sqrt(r1 r2) / r2 both become sqrt(r1 r2), which is what per-tensor quantization needs. Here s is
the nearest power of two, so nothing else is rounded: the outputs stay equal bit for bit, unless
feature maps overflow or underflow.

With images, r1 is the range of the channel itself on these images, instead of the range of the
weights that compute it (Xiao et al. 2022, arXiv 2211.10438, equation 4 with alpha = 1/2). That is
what quantization needs if feature maps have one scale and weights one per output channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from mmseg_repvgg.reparam.channel_scales import FactorTracer, TracedConv
from mmseg_repvgg.reparam.conv_inputs import ConvInputs
from mmseg_repvgg.reparam.equivalence import (
    difference,
    model_outputs,
    random_images,
    repeatable_outputs,
    require_equal,
    takes_images,
    tolerance_of,
)

SIZE = (97, 129)
"""Of the random images: small, and not divisible by the usual dilations."""

MAX_SWEEPS = 100
"""Limit of passes over all convs. DeepLabV3+ on RepVGG-B1g2 takes 16."""


def equalize(model: nn.Module, images: Iterable[Tensor] | None = None) -> int:
    """Balance the ranges of weights channel by channel; in place.

    The model is run on random images to see which layers read which channels
    (:mod:`mmseg_repvgg.reparam.channel_scales`). All convs that read a channel are scaled with it:
    the next conv, heads, the first conv of a squeeze-excitation. A channel is unchanged if it is an
    output, or if anything else reads it: an activation other than ReLU, LeakyReLU and PReLU, a
    BatchNorm, an unknown operation. So fuse the model first: nothing can be scaled in the branches
    of the training form.

    The outputs of :func:`~.equivalence.model_outputs` stay the same, for a segmentor the logits.
    The feature maps of its ``extract_feat`` are scaled.

    Args:
        model: A model that takes images, in any mode, in float32, float64 or bfloat16.
        images: Preprocessed batches (N, C, H, W), whose feature maps are balanced with the weights
            that read them; by default weights are balanced with weights.

    Returns:
        The number of output channels of convs that were scaled: 0 if applied again.

    Raises:
        ValueError: If the model is in float16 or cannot be run on images alone.
        EquivalenceError: If the outputs are no longer the same; the model is then unchanged.
    """
    _check(model)
    if next(model.parameters(), None) is None:
        return 0
    ranges = None if images is None else ConvInputs().record(model, images)
    trial = random_images(model, SIZE)
    tracer = FactorTracer()
    with torch.no_grad():
        before = repeatable_outputs(model, trial, partial(_traced_outputs, tracer))
        convs = tracer.solve(before)
        seen = None if ranges is None else [ranges.largest(conv.weight) for conv in convs]
        exponents = _safe_exponents(convs, len(tracer.parents), seen)
        _scale(convs, exponents)
        after = repeatable_outputs(model, trial)
        # if random weights overflow, both outputs must
        found = difference(*([t.nan_to_num() for t in outputs] for outputs in (before, after)))
        # nothing is rounded, but a GPU may choose other conv algorithms from run to run
        tolerance = tolerance_of(model) / (100 if trial.device.type == 'cpu' else 1)
        if not found.max_rel <= tolerance:
            _scale(convs, -exponents)
            require_equal(found, tolerance, f'equalize of {type(model).__name__}')
    return sum(int((exponents[conv.outputs] != 0).sum()) for conv in convs)


def _check(model: nn.Module) -> None:
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ValueError(
            "'equalize' moves feature maps out of the narrow range of float16: apply it to the "
            'model in float32 and call half() afterwards'
        )
    if not takes_images(model):
        raise ValueError(
            f"'equalize' has to run the model on images alone, which {type(model).__name__} cannot "
            "do; leave 'equalize' out of the rewrites"
        )


def _traced_outputs(tracer: FactorTracer, model: nn.Module, images: Tensor) -> list[Tensor]:
    with tracer:
        return model_outputs(model, images)


def _safe_exponents(
    convs: Sequence[TracedConv], count: int, seen: Sequence[Tensor | None] | None
) -> Tensor:
    """The exponents of :func:`balance`, without scales that would lose a bit of a weight or bias.

    Args:
        convs: Convs with channels numbered from 0 to ``count`` - 1; channel 0 is not scaled.
        count: How many numbers there are.
        seen: As :func:`balance`.

    Returns:
        Integers (count,) float64.
    """
    is_free = torch.arange(count) > 0
    while True:
        exponents = balance(convs, is_free, seen)
        was_free = is_free.clone()
        for conv in convs:
            is_free[_lossy_channels(conv, exponents)] = False
        if torch.equal(is_free, was_free):
            return exponents


def balance(
    convs: Sequence[TracedConv],
    is_free: Tensor,
    seen: Sequence[Tensor | None] | None = None,
) -> Tensor:
    """Exponents k that balance ranges if channels are multiplied by 2^-k.

    Channel by channel, the rounded log2(s) is added to k, until it is 0 for all of them. The range
    r1 includes the bias divided by the number of weights. That matters only if the weights are
    almost 0: a channel of almost constant value must not grow without bound.

    Args:
        convs: Convs with numbered channels; several convs may compute or read a channel.
        is_free: (count,) bool: the channels that may be scaled.
        seen: For each conv the largest absolute value of every channel that it reads, (C_in,); it
            replaces r1. None: weights only.

    Returns:
        Integers (count,) float64.
    """
    exponents = torch.zeros(len(is_free), dtype=torch.float64)
    ranges = [_log_ranges(conv) for conv in convs]
    maps = None if seen is None else [_log2(s, conv) for s, conv in zip(seen, convs, strict=True)]
    near = [[i for i, other in enumerate(convs) if other.shares(conv.outputs)] for conv in convs]
    for _ in range(MAX_SWEEPS):
        before = exponents.clone()
        for conv, neighbours in zip(convs, near, strict=True):
            giving = torch.full_like(exponents, -torch.inf)
            reading = giving.clone()
            for i in neighbours:
                inputs, outputs, groups = convs[i].inputs, convs[i].outputs, convs[i].groups
                weights, biases = ranges[i]
                given = exponents[outputs].view(groups, -1, 1)
                scaled = weights + exponents[inputs].view(groups, 1, -1) - given
                if maps is None:
                    largest = torch.maximum(scaled.amax(2), biases - given[..., 0])
                    giving.scatter_reduce_(0, outputs, largest.flatten(), 'amax')
                else:
                    giving.scatter_reduce_(0, inputs, maps[i] - exponents[inputs], 'amax')
                reading.scatter_reduce_(0, inputs, scaled.amax(1).flatten(), 'amax')
            # a tie between two powers goes to the one nearer to 1, despite rounding of logarithms
            steps = ((giving - reading) / 2 * (1 - 1e-9)).round()
            is_balanced = is_free & steps.isfinite()  # not without readers or weights
            channels = conv.outputs.unique()
            exponents[channels] += torch.where(is_balanced, steps, 0.0)[channels]
        if torch.equal(exponents, before):
            break
    return exponents


def _log_ranges(conv: TracedConv) -> tuple[Tensor, Tensor]:
    """log2 of the largest |weight| of each pair of channels, and of |bias| / number of weights.

    Returns:
        (groups, C_out / groups, C_in / groups) and (groups, C_out / groups), float64.
    """
    weight = conv.weight.detach().abs().flatten(2)
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias.detach().abs()
    ranges = [weight.amax(2), bias / weight[0].numel()]
    largest, biases = (r.cpu().double().log2().unflatten(0, (conv.groups, -1)) for r in ranges)
    return largest, biases


def _log2(seen: Tensor | None, conv: TracedConv) -> Tensor:
    """log2 of the largest values of the channels that a conv reads: (C_in,) float64."""
    if seen is None:  # it did not run on these images
        return torch.full((len(conv.inputs),), -torch.inf, dtype=torch.float64)
    return seen.cpu().double().log2()


def _scales(conv: TracedConv, exponents: Tensor) -> list[tuple[nn.Parameter, Tensor]]:
    """The parameters of a conv and the powers of two that they are multiplied by."""
    powers = torch.tensor([2.0**-k for k in exponents.tolist()], dtype=torch.float64)
    of_outputs = powers[conv.outputs]
    of_weights = of_outputs[:, None] / powers[conv.input_of_weights()]
    spatial = [1] * (conv.weight.dim() - 2)
    found = [(conv.weight, of_weights.view(*of_weights.shape, *spatial).to(conv.weight))]
    return found if conv.bias is None else [*found, (conv.bias, of_outputs.to(conv.bias))]


def _lossy_channels(conv: TracedConv, exponents: Tensor) -> Tensor:
    """The numbers of the channels whose weights or biases overflow or become denormal."""
    weights, *biases = [((p * by) / by != p).cpu() for p, by in _scales(conv, exponents)]
    pairs = weights.flatten(2).any(2)
    outputs = torch.stack([pairs.any(1), *biases]).any(0)
    return torch.cat([conv.outputs[outputs], conv.input_of_weights()[pairs]])


def _scale(convs: Sequence[TracedConv], exponents: Tensor) -> None:
    for conv in convs:
        for parameter, scale in _scales(conv, exponents):
            parameter.mul_(scale)
