"""BatchNorm in training on the CPU, with sums that use all of a vector register.

PyTorch's own sums up mean and variance of a channel number by number in double precision, which
takes longer than all the rest of the layer. Here the sums are PyTorch's vectorised ones: pairwise
in the precision of the map, the variance of what is left when the mean is taken off.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.models.eager import is_on_cpu, is_transformed, is_unwatched

SMALLEST = 2**18
"""Numbers below which the calls take longer than the sums."""
ROW = 64
"""Width from which each row is summed up by itself: the norm of a long vector loses digits."""


def normed(norm: Any, x: Tensor) -> Tensor:
    """``norm(x)``; a plain BatchNorm in training on the CPU takes the quick way.

    Running statistics and the count of batches change as they do in ``norm(x)``. Whatever has
    hooks, other norms, other dtypes, autocast, ``torch.func`` and captured graphs take ``norm``.

    Args:
        norm: Any module.
        x: (N, C, H, W).

    Returns:
        Of the same shape.
    """
    if not (_is_plain(norm) and is_on_cpu(x, norm) and _pays(norm, x)):
        return norm(x)
    out, mean, variance = _BatchNorm.apply(x, norm.weight, norm.bias, norm.eps)
    count = x.numel() // norm.num_features
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        unbiased = norm.momentum * count / (count - 1)
        norm.running_var.mul_(1 - norm.momentum).add_(variance, alpha=unbiased)
    return out


def _pays(norm: Any, x: Tensor) -> bool:
    return (
        x.shape[1] == norm.num_features
        and x.numel() >= max(SMALLEST, 2 * norm.num_features)  # of one value: PyTorch refuses it
        and not is_transformed()
    )


def _is_plain(norm: Any) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and is_unwatched(norm)
    )


class _BatchNorm(torch.autograd.Function):
    """Gives the normalised map, and mean and biased variance of each channel."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, channels = x.shape[:2]
        mean = x.mean((0, 2, 3), keepdim=True)
        out = x - mean
        pieces = out.flatten(2) if x.shape[3] < ROW else out
        norms = torch.linalg.vector_norm(pieces, dim=-1).view(batch, channels, -1)
        variance = norms.square().sum((0, 2)) / (x.numel() // channels)
        inverse = variance.add(eps).rsqrt_()
        out.mul_((weight * inverse).view(-1, 1, 1)).add_(bias.view(-1, 1, 1))
        mean = mean.view(-1)
        ctx.eps = eps
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if gradient is None:
            return None, None, None, None
        x, weight, mean, inverse = ctx.saved_tensors
        wanted = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, None, None, mean, inverse, True, ctx.eps, wanted
        )
        return *found, None
