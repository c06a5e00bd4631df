"""What the tests against other implementations share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import Tensor, nn

from mmseg_repvgg.checkpoint.naming_schemes import SCHEMES
from mmseg_repvgg.models import DilatedRepVGG
from tests.common import randomise_batchnorms

TOLERANCE = 1e-4
"""Largest difference of a feature map, relative to its largest value, that is still equal."""

QUICK = ('A0', 'B0', 'B1g2')
"""The architectures that the quick tests run; the others are the slow tests'."""

NAMES_OF_ALL = [scheme for scheme in SCHEMES if scheme != 'repvggplus']
"""The naming schemes that are not of one model only."""
WITH_SE = ('ours', 'official', 'timm')
"""Those with names for squeeze-excitation before the activation."""


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for every architecture."""
    rows = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in names]
    return pytest.mark.parametrize('name', rows)


def unfilled(name: str | dict, **settings) -> DilatedRepVGG:
    """A backbone in eval mode of which every number is NaN, until weights fill it."""
    with torch.device('meta'):
        model = DilatedRepVGG(name, **settings)
    model.to_empty(device='cpu')
    for tensor in model.state_dict().values():
        tensor.fill_(float('nan') if tensor.is_floating_point() else -1)
    return model.eval()


@torch.no_grad()
def as_trained(model: nn.Module) -> nn.Module:
    """Give every BatchNorm random weights, and random statistics of the size of what it sees.

    With statistics drawn freely the features grow from layer to layer, in a fresh model of timm to
    1e6, or die out; then a wrong bias, or a wrong kernel, is not seen beside the rest.
    """

    def scale(norm: nn.Module, inputs: tuple[Tensor]) -> None:
        square = inputs[0].square().mean()
        norm.running_mean.mul_(square.sqrt())
        norm.running_var.mul_(square)

    randomise_batchnorms(model)  # and eval mode
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(scale) for norm in norms]
    model(torch.randn(1, 3, 64, 64))
    for hook in hooks:
        hook.remove()
    return model


@torch.no_grad()
def gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest difference of any feature map, relative to the map's largest value."""
    assert [a.shape for a in ours] == [b.shape for b in theirs]
    gaps = [(a - b).abs().max() / b.abs().max() for a, b in zip(ours, theirs, strict=True)]
    return float(torch.stack(gaps).max())  # NaN stays NaN, and equals nothing


@torch.no_grad()
def mirror_a_kernel(model: DilatedRepVGG) -> nn.Module:
    """Make a small mistake for negative controls: one 3x3 kernel, seen in a mirror."""
    block = model.stage_3[1]
    conv = block.branch_reparam if block.deploy else block.branch_3x3.conv
    conv.weight.copy_(conv.weight.flip(-1))
    return model
