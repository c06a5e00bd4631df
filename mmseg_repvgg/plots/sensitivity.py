"""How much every layer of a network loses in int8."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from mmseg_repvgg.plots.style import bar_height, grouped_bars, new_figure, save


def draw_sensitivity(layers: Sequence[Any], in_float: Collection[str], path: Path) -> None:
    """Draw the errors at the logits that quantizing each layer alone makes.

    Args:
        layers: With the attributes of :class:`~.deploy.quantize.sensitivity.Sensitivity`.
        in_float: The names of those that are left in float.
        path: The PNG or SVG to write.
    """
    names = [
        f'{layer.name} (in float)' if layer.name in in_float else layer.name for layer in layers
    ]
    series = {'error of the logits': [100 * layer.error for layer in layers]}
    figure = new_figure(bar_height(names, series))
    axes = figure.subplots()
    grouped_bars(axes, names, series)
    axes.set_xlabel('change of the logits if this layer alone is quantized, in % of their norm')
    save(figure, path)
