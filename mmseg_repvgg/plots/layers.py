"""The backbone's layers one by one: norms of branches, ranges of kernels, what fusing changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from mmseg_repvgg.models.block import RepVGGBlock
from mmseg_repvgg.plots.style import COLOURS, legend_above, new_figure, plain_ticks
from mmseg_repvgg.reparam.batchnorm import fold_batchnorm
from mmseg_repvgg.reparam.branches import fusible_blocks
from mmseg_repvgg.reparam.equivalence import difference, repeatable_outputs
from mmseg_repvgg.reparam.module_hooks import computed_weights
from mmseg_repvgg.reparam.rewrites import deployed_copy

MARKERS = ('o', 's', '^')


def branch_norms(model: nn.Module) -> dict[str, dict[str, float]]:
    """The norm of every branch's kernel, with its BatchNorm folded in.

    It is the L2 norm of the kernel of an output channel, as the root mean square over the channels:
    an identity without scale has 1, whatever the width of the layer. A BatchNorm after the addition
    (``block='post_addition_bn'``) is not folded in.

    Args:
        model: A model in training form.

    Returns:
        The norms by the name of the layer and that of the branch.

    Raises:
        ValueError: If there is no RepVGG block in training form, or a norm cannot be folded.
    """
    found: dict[str, dict[str, float]] = {}
    with torch.no_grad(), computed_weights(model):
        for name, block in model.named_modules():
            if isinstance(block, RepVGGBlock) and not block.deploy:
                found[name] = {
                    branch: _norm_per_channel(weight, norm)
                    for branch, (weight, norm) in block.branch_kernels().items()
                }
    if not found:
        raise ValueError(
            f'{type(model).__name__} has no RepVGG block with branches: give the config of a model '
            'on DilatedRepVGG, and its training checkpoint'
        )
    return found


def _norm_per_channel(weight: Tensor, norm: nn.Module) -> float:
    kernel = weight if type(norm) is nn.Identity else fold_batchnorm(weight, None, norm)[0]
    return kernel.double().flatten(1).norm(dim=1).square().mean().sqrt().item()


def draw_branches(norms: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw what :func:`branch_norms` returns."""
    figure = new_figure(4.5)
    axes = figure.subplots()
    names = list(norms)
    branches = dict.fromkeys(branch for layer in norms.values() for branch in layer)
    for branch, colour, marker in zip(branches, COLOURS, MARKERS, strict=False):
        values = [norms[name].get(branch, float('nan')) for name in names]
        axes.plot(values, marker=marker, color=colour, label=branch, markersize=5, linewidth=1)
    axes.set_yscale('log')
    plain_ticks(axes.yaxis)
    axes.set_ylabel('norm of the kernel, per output channel')
    _label_layers(axes, names)
    legend_above(axes)
    return figure


@dataclass(frozen=True)
class KernelRanges:
    """Largest weight of each 3x3 kernel, in standard deviations of its weights, by layer.

    8 bits cover the largest weight, so the larger this is, the coarser they round the others.
    """

    fused: dict[str, float]
    alone: dict[str, float]  # the 3x3 branch with its BatchNorm; empty if the model is fused

    @classmethod
    def of(cls, model: nn.Module) -> KernelRanges:
        """Those of all RepVGG blocks of a model, in training form or fused.

        Raises:
            ValueError: If there is no RepVGG block, or one cannot be fused.
        """
        fused, alone = {}, {}
        with torch.no_grad(), computed_weights(model):
            for name, block in model.named_modules():
                if isinstance(block, RepVGGBlock):
                    fused[name] = _range(block.get_equivalent_kernel_bias()[0])
                    if not block.deploy:
                        weight, norm = block.branch_kernels()['3x3']
                        folds = type(norm) is not nn.Identity
                        alone[name] = _range(
                            fold_batchnorm(weight, None, norm)[0] if folds else weight
                        )
        if not fused:
            raise ValueError(
                f'{type(model).__name__} has no RepVGG block: give a model on DilatedRepVGG'
            )
        return cls(fused, alone)


def _range(kernel: Tensor) -> float:
    kernel = kernel.double()
    return (kernel.abs().max() / kernel.std()).item()


def draw_ranges(models: Mapping[str, KernelRanges]) -> Figure:
    """Draw the ranges of models, by name, over those of the one with the most layers."""
    figure = new_figure(4.5)
    axes = figure.subplots()
    layers = max((found.fused for found in models.values()), key=len)
    for (name, found), colour in zip(models.items(), cycle(COLOURS), strict=False):
        for values, style, what in (
            (found.fused, 'o-', 'fused'),
            (found.alone, '.:', '3x3 branch'),
        ):
            if values:
                line = [values.get(layer, float('nan')) for layer in layers]
                axes.plot(line, style, color=colour, label=f'{name}, {what}', linewidth=1)
    axes.set_yscale('log')
    plain_ticks(axes.yaxis)
    axes.set_ylabel('largest weight / standard deviation')
    _label_layers(axes, list(layers))
    legend_above(axes, 2)
    return figure


def fusing_differences(model: nn.Module, images: Tensor) -> dict[str, float]:
    """How far the outputs of every layer are apart before and after fusing its branches.

    Every layer gets what the layers before it give, so differences add up. BatchNorms of the heads
    are fused as well.

    Args:
        model: A model in training form, which stays as it is.
        images: Preprocessed images (N, C, H, W).

    Returns:
        The largest difference over the largest absolute value of the output, by the name of the
        layer; of the network's output as ``output``.

    Raises:
        ValueError: If there is nothing to fuse, or it cannot be fused.
    """
    names = list(fusible_blocks(model))
    fused, _ = deployed_copy(model, ['branches', 'batchnorm'])
    before, after = (_layer_outputs(network, names, images) for network in (model, fused))
    return {name: difference([before[name]], [after[name]]).max_rel for name in before}


def _layer_outputs(model: nn.Module, names: Iterable[str], images: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output})

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        (output, *_) = repeatable_outputs(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return dict(found, output=output)


def draw_differences(differences: Mapping[str, float], tolerance: float) -> Figure:
    """Draw what :func:`fusing_differences` returns.

    Args:
        differences: By layer.
        tolerance: Above this, other commands refuse a fused model.
    """
    figure = new_figure(4.5)
    axes = figure.subplots()
    axes.plot(list(differences.values()), 'o-', color=COLOURS[0], linewidth=1, markersize=5)
    axes.axhline(tolerance, color=COLOURS[3], linewidth=1, label='largest that is allowed')
    axes.axhline(
        torch.finfo(torch.float32).eps, color='grey', linestyle='--', linewidth=1,
        label='one rounding of float32',
    )  # fmt: skip
    axes.set_yscale('log')
    axes.set_ylabel('largest difference, relative')
    _label_layers(axes, list(differences))
    legend_above(axes)
    return figure


def _label_layers(axes: Axes, names: Sequence[str]) -> None:
    """Label the x axis by layers, and draw lines between the stages."""
    shown = [name.removeprefix('backbone.').replace('stage_', '') for name in names]
    small = len(names) > 16
    axes.set_xticks(
        range(len(names)), shown, rotation=90 if small else 0, fontsize=8 if small else 9
    )
    for i in range(1, len(names)):
        if names[i].rpartition('.')[0] != names[i - 1].rpartition('.')[0]:
            axes.axvline(i - 0.5, color='grey', linewidth=0.8, linestyle=':')
    axes.set_xlabel('layer of the backbone: stage.number')
    axes.grid(axis='y', alpha=0.3)
