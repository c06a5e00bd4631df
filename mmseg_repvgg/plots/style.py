"""What all charts of this package share: size, colours, bars, ticks, and the places of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import AutoLocator, LogLocator, NullFormatter
from matplotlib.transforms import Bbox

from mmseg_repvgg.atomic_files import atomic_file, make_folder

COLOURS = ('#0072B2', '#E69F00', '#009E73', '#D55E00', '#CC79A7', '#56B4E9', '#000000')
"""The palette of Okabe and Ito for colour-blind readers (jfly.uni-koeln.de/color), without its
yellow, which is faint on white."""
WIDTH = 10.0
"""Of every figure, in inches of 100 pixels."""
METADATA: dict[str, dict[str, Any]] = {'.png': {'Software': None}, '.svg': {'Date': None}}
"""By the suffixes of pictures; None leaves out what would change from one drawing to the next."""


def new_figure(height: float) -> Figure:
    """An empty figure of 1000 pixels width.

    Args:
        height: In inches of 100 pixels.
    """
    return Figure(figsize=(WIDTH, height), dpi=100, layout='constrained')


def check_suffix(path: Path) -> None:
    """Check that a picture can be written under this name.

    Raises:
        ValueError: If not.
    """
    if path.suffix not in METADATA:
        raise ValueError(f'{str(path)!r} must end in {" or ".join(METADATA)}')


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG or SVG, by the suffix.

    Raises:
        ValueError: If the suffix is another.
        OSError: If it cannot be written.
    """
    check_suffix(path)
    make_folder(path.parent)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, metadata=METADATA[path.suffix])


def series_style(index: int) -> dict[str, Any]:
    """Colour and, once all colours are used, hatching of the bars of a series."""
    rounds, i = divmod(index, len(COLOURS))
    return dict(color=COLOURS[i], hatch='//' * rounds, edgecolor='white')


def bar_height(names: Sequence[str], series: Mapping[str, Any]) -> float:
    """Height of a figure of :func:`grouped_bars`, such that the bars' texts have room; inches."""
    return 1.6 + 0.2 * len(names) * (len(series) + 0.6)


def grouped_bars(
    axes: Axes,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    text: str = '{:.2f}',
    missing: str = '',
) -> None:
    """Draw horizontal bars with their values.

    Args:
        axes: Where to draw.
        names: Names of the groups of bars, from top to bottom.
        series: A value per group, by the name of the series, which gets a colour.
        text: Format of the values.
        missing: Text where a value is None.
    """
    height = 0.85 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = np.arange(len(names)) + (i - (len(series) - 1) / 2) * height
        bars = axes.barh(places, [v or 0 for v in values], height, label=name, **series_style(i))
        texts = [missing if value is None else text.format(value) for value in values]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.margins(x=0.08)
    axes.grid(axis='x', alpha=0.3)
    axes.set_axisbelow(True)


def legend_above(axes: Axes, columns: int = 3) -> None:
    """Put the legend above the right end of the axes, where it hides nothing."""
    place: Any = dict(loc='lower right', bbox_to_anchor=(1, 1), borderaxespad=0.2)
    axes.legend(ncols=columns, frameon=False, fontsize=9, **place)


def plain_ticks(axis: Axis) -> None:
    """Label a logarithmic axis by plain numbers, such as 5, 10, 20; call it after drawing data."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 10 * low else AutoLocator())
    axis.set_major_formatter('{x:g}')
    axis.set_minor_formatter(NullFormatter())


def place_labels(axes: Axes, labels: Sequence[tuple[str, tuple[float, float], str]]) -> None:
    """Write labels next to their points, such that none hides another label or a point.

    One after the other gets the best of the places around its point: free, near, and on no line.
    Call it last, because it needs the final limits of the axes.

    Args:
        axes: Where to write.
        labels: Text, point in data coordinates, and colour.
    """
    figure: Any = axes.figure
    figure.draw_without_rendering()  # now everything has its place
    dots = [axes.transData.transform(point) for _, point, _ in labels]
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in dots]
    inside, on_lines = axes.get_window_extent(), _pixels_of_lines(axes)

    def cost(box: Bbox, distance: float) -> float:
        hidden = box.count_overlaps(taken) + sum(not inside.contains(*p) for p in box.corners())
        return 100 * hidden + box.count_contains(on_lines) + distance / 4

    for (text, point, colour), dot in zip(labels, dots, strict=True):
        note = axes.annotate(
            text, point, textcoords='offset points', ha='center', va='center', fontsize=8,
            color=colour, in_layout=False, xytext=(0, 0),
            arrowprops=dict(arrowstyle='-', color=colour, linewidth=0.5, shrinkA=0, shrinkB=3),
        )  # fmt: skip
        size = np.add(Text.get_window_extent(note).size, 2)
        boxes = []
        for distance, angle in product((6, 12, 18, 26, 36, 48), np.arange(16) * np.pi / 8):
            offset = np.array([np.cos(angle), np.sin(angle)]) * (size / 2 + distance)
            box = Bbox.from_bounds(*(dot + offset - size / 2), *size)
            boxes.append((cost(box, distance), *offset, box))
        _, *offset, box = min(boxes, key=lambda found: found[0])
        note.set_position(tuple(72 / figure.dpi * side for side in offset))
        taken.append(box)


def _pixels_of_lines(axes: Axes) -> np.ndarray:
    """Points (N, 2) on the lines of the axes, in pixels, about 4 pixels apart."""
    found = [np.empty((0, 2))]
    for line in axes.get_lines():
        ends = axes.transData.transform(line.get_xydata())
        if line.get_linestyle() == 'None':
            continue
        for start, end in pairwise(ends):
            count = 2 + int(np.hypot(*(end - start)) / 4)
            found.append(np.linspace(start, end, count))
    return np.concatenate(found)
