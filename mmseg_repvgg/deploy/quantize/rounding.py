"""Rounding to int8 in PyTorch, on the grid that the quantizers of exported files use.

It is differentiable: gradients pass as if nothing had been rounded (the straight-through estimator
of Bengio et al. 2013, arXiv 1308.3432), so that a network can be trained with it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from mmseg_repvgg.checks import preview


@dataclass(frozen=True)
class Scheme:
    """How weights and feature maps are quantized.

    Raises:
        ValueError: If ``weight_bits`` is not 7 or 8.
    """

    per_tensor: bool = False  # one scale for all weights of a conv, instead of one per channel
    weight_bits: int = 8
    symmetric: bool = False  # zero points of feature maps are 0

    def __post_init__(self) -> None:
        if self.weight_bits not in (7, 8):
            raise ValueError(f'weight_bits={self.weight_bits!r} must be 7 or 8')


def round_weights(weight: Tensor, scheme: Scheme) -> Tensor:
    """Round weights (C_out, ...) to symmetric integers with one scale per channel, or for all."""
    steps = 127 if scheme.weight_bits == 8 else 64
    largest = weight.detach().abs().flatten(1).amax(1)
    if scheme.per_tensor:
        largest = largest.amax().expand_as(largest)
    scale = (largest / steps).float().clamp(min=torch.finfo(torch.float32).tiny)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -steps, steps)


def round_maps(x: Tensor, low: Tensor, high: Tensor, symmetric: bool) -> Tensor:
    """Round a feature map to 8 bits, from ``low`` (at most 0) to ``high`` (at least 0)."""
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    scale = (high - low).float() / (254 if symmetric else 255)
    scale = scale.clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


class RoundedConv2d(nn.Conv2d):
    """A conv that computes with weights and inputs rounded to int8, in training and in eval mode.

    Its parameters, with their names, are those of the conv. The range of its input is that of each
    batch: nothing has to be calibrated, kept in checkpoints or agreed on between processes, and it
    follows the weights while they are trained.
    """

    scheme: Scheme

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values = input.detach()
        low, high = values.amin().clamp(max=0), values.amax().clamp(min=0)
        rounded = round_maps(input, low, high, self.scheme.symmetric)
        return super()._conv_forward(rounded, round_weights(weight, self.scheme), bias)


def round_convs(model: nn.Module, scheme: Scheme, in_float: Collection[str] = ()) -> list[str]:
    """Let the convs of a fused segmentor compute as :class:`RoundedConv2d`; in place.

    Modules change their class and stay in place.

    Args:
        model: A segmentor in fused form.
        scheme: How to round.
        in_float: Names of convs that do not round.

    Returns:
        The names of the convs that round.

    Raises:
        ValueError: As :func:`convs_to_round`; the model is then unchanged.
    """
    convs = convs_to_round(model, in_float)
    for conv in convs.values():
        conv.__class__, conv.scheme = RoundedConv2d, scheme
    return list(convs)


@torch.no_grad()
def replace_by_rounded_weights(
    model: nn.Module, scheme: Scheme, in_float: Collection[str] = ()
) -> None:
    """Round the weights of a fused segmentor that was trained as :func:`round_convs` made it.

    Rounding is part of what such a network has learnt: it may compute something else with the
    weights before rounding. Rounded again, as by a quantizer, rounded weights stay as they are.

    Args:
        model: As :func:`round_convs`, which was not applied.
        scheme: As :func:`round_convs`.
        in_float: As :func:`round_convs`.

    Raises:
        ValueError: As :func:`convs_to_round`.
    """
    for conv in convs_to_round(model, in_float).values():
        conv.weight.copy_(round_weights(conv.weight, scheme))


def convs_to_round(model: nn.Module, in_float: Collection[str] = ()) -> dict[str, Any]:
    """The convs of a fused segmentor that are rounded in training, by name.

    In float stay the classifier (:func:`classifier_weights`), auxiliary heads, which are not
    exported, and ``in_float``.

    Raises:
        ValueError: If the model has BatchNorms, a conv of another class or no conv at all, or an
            unknown name.
    """
    norms = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    if norms:
        raise ValueError(
            f'the model still has {len(norms)} BatchNorms ({preview(norms)}), which an exported '
            "file does not have: train the fused form, model=dict(type='DeployedModel', "
            "of='mmseg.EncoderDecoder', rewrites=['branches', 'batchnorm', 'pyramid'], ...)"
        )
    convs = {name: m for name, m in model.named_modules() if isinstance(m, _ConvNd)}
    unknown = [name for name in in_float if name not in convs]
    if unknown:
        raise ValueError(f'in_float={unknown} are no convs of the model: some are {preview(convs)}')
    skipped = {*in_float, *(name.removesuffix('.weight') for name in classifier_weights(model))}
    chosen: dict[str, Any] = {
        name: conv
        for name, conv in convs.items()
        if name not in skipped and not name.startswith('auxiliary_head.')
    }
    others = [n for n, conv in chosen.items() if type(conv) not in (nn.Conv2d, RoundedConv2d)]
    if others:
        kinds = ', '.join(sorted({type(chosen[name]).__name__ for name in others}))
        raise ValueError(
            f'{preview(others)} cannot be rounded to int8 in training, only nn.Conv2d can, not '
            f"{kinds}: leave 'dilation' and 'winograd' out of the model's rewrites, and name "
            'others in in_float'
        )
    if not chosen:
        raise ValueError(f'{type(model).__name__} has no convs to round to int8')
    return chosen


def classifier_weights(model: nn.Module) -> list[str]:
    """The names of the weights of the head's last conv: its error is that of the logits.

    It is 1x1 and cheap, so that it stays in float.
    """
    return [
        name
        for name, _ in model.named_parameters()
        if name.startswith('decode_head.') and name.endswith('.conv_seg.weight')
    ]
