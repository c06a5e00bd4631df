"""Adapts weights of a backbone for RGB images to images with another number of channels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmseg_repvgg.checkpoint.names import stem_kernels
from mmseg_repvgg.reparam.branches import identity_kernel
from mmseg_repvgg.reparam.dirac_kernels import dirac_kernel, trivial_kernel

RGB = 3


def adapt_kernel(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the kernel of a first conv, as timm does (``adapt_input_conv``).

    One channel gets the sum over the three. More channels get the kernels of red, green and blue
    again and again, times ``3 / in_channels``.

    Args:
        weight: (C_out, 3, h, w).
        in_channels: Channels of the images.

    Returns:
        (C_out, in_channels, h, w), in the dtype of ``weight``.
    """
    exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if in_channels == 1:
        return exact.sum(1, keepdim=True).to(weight.dtype)
    repeated = exact.repeat(1, math.ceil(in_channels / RGB), 1, 1)[:, :in_channels]
    return (repeated * (RGB / in_channels)).to(weight.dtype)


def adapt_stem(model: Any, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Adapt the stem of a backbone's weights for RGB images to the channels of a model.

    The conv that equals the adapted stem is the adapted one of the conv that equals the stem: in
    the blocks of DiracNet and Trivial Re-param, whose kernels hold the identity, too.

    Args:
        model: A ``DilatedRepVGG``.
        state: Tensors by our names, without ``backbone.``, in training or fused form.

    Returns:
        The weights, and a note on what was adapted; the weights as they are, and '', if the model
        takes RGB images or the stem's weights are not for them.
    """
    own = stem_kernels(model.state_dict())
    in_channels = next(iter(own.values())).shape[1] if own else RGB
    kernels = {
        name: weight
        for name, weight in stem_kernels(state).items()
        if weight.shape[1] == RGB != in_channels and weight.is_floating_point()
    }
    adapted = {name: adapt_kernel(weight, in_channels) for name, weight in kernels.items()}
    if not adapted:
        return dict(state), ''
    note = ', '.join(
        f'{n} {tuple(kernels[n].shape)} to {tuple(w.shape)}' for n, w in adapted.items()
    )
    name = 'stem.branch_3x3.conv.weight'
    if name in kernels and _has_identity_in_kernel(model):
        adapted.update(_adapt_with_identity(name, state, in_channels))
    return {**state, **adapted}, f'adapted to {in_channels} input channels: {note}'


def _has_identity_in_kernel(model: Any) -> bool:
    """Whether the conv computes its kernel from weights: DiracNet and Trivial Re-param."""
    stem = (model.training_form() if model.deploy else model).stem
    return hasattr(stem, 'branch_3x3') and hasattr(stem.branch_3x3.conv, 'kernel')


def _adapt_with_identity(
    name: str, state: Mapping[str, Tensor], in_channels: int
) -> dict[str, Tensor]:
    """Adapt ``I + W`` or ``diag(a) I + diag(b) W_norm``, and solve for W and b."""
    weight = state[name]
    a, b = (state.get(name.replace('weight', part)) for part in 'ab')
    if a is None or b is None:
        kernel = adapt_kernel(trivial_kernel(weight, 1), in_channels)
        return {name: kernel - identity_kernel(kernel, 1)}
    kernel = adapt_kernel(dirac_kernel(weight, a, b, 1), in_channels)
    rest = kernel - a[:, None, None, None] * identity_kernel(kernel, 1)
    return {name: rest, name.replace('weight', 'b'): rest.flatten(1).norm(dim=1)}
