"""Parameters, FLOPs and Winograd MULs as the paper counts them (section 2.4, Tables 4 and 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

WINOGRAD = 4 / 9
"""Multiplications of a 3x3 conv with F(2x2, 3x3) Winograd, as a share of those without."""
MAX_GROUPS = 4
"""Groups of a 3x3 conv up to which the paper counts it as accelerated."""


@dataclass(frozen=True)
class Complexity:
    """What a deployed network costs."""

    params: float  # kernels, one bias per channel, the classifier
    flops: float  # multiply-adds, of convs and linear layers, for one image
    wino_muls: float  # the same with stride-1 3x3 convs counted 4/9


def count(model: nn.Module, size: tuple[int, int] = (224, 224), channels: int = 3) -> Complexity:
    """Count a network in deployed form: every conv-BN is a conv with bias.

    BatchNorms are not counted; every conv counts one bias per channel.

    Args:
        model: A classifier or backbone. On the meta device nothing is computed.
        size: Height and width of the image in pixels.
        channels: Channels of the image.

    Returns:
        The totals over all convs and linear layers that run in one forward pass.
    """
    totals = dict(params=0.0, flops=0.0, wino_muls=0.0)
    seen: set[int] = set()

    def add(module: Any, _inputs: Any, output: Tensor) -> None:
        weights = module.weight.numel()
        features = weights // module.weight.shape[0]
        flops = output.numel() * features
        is_3x3 = isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
        winograd = is_3x3 and module.stride == (1, 1) and module.groups <= MAX_GROUPS
        totals['flops'] += flops
        totals['wino_muls'] += flops * (WINOGRAD if winograd else 1)
        if id(module) not in seen:
            seen.add(id(module))
            totals['params'] += weights + module.weight.shape[0]

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(add) for layer in layers]
    device = next(model.parameters()).device
    training = model.training
    try:
        model.eval()
        with torch.no_grad():
            model(torch.zeros(1, channels, *size, device=device))
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return Complexity(**totals)
