"""Pictures of benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from mmseg_repvgg.atomic_files import atomic_file

COLOURS = [matplotlib.colormaps['tab20'](i) for i in range(20)]


def bars(
    path: Path,
    names: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    label: str,
    title: str,
) -> None:
    """Draw grouped horizontal bars with their values; None leaves a gap. No data, no file.

    Args:
        path: The PNG to write.
        names: Names of the groups of bars.
        series: A value per group, by the name of the series.
        label: Label of the value axis.
        title: Title of the picture.
    """
    if not names or not series:
        return  # none of the measured candidates is in this picture
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(names) * (len(series) + 1)), layout='constrained')
    axes = figure.subplots()
    height = 0.85 / len(series)
    for i, (name, values) in enumerate(series.items()):
        places = [row + i * height for row in range(len(names))]
        lengths = [value or 0 for value in values]
        drawn = axes.barh(places, lengths, height, label=name, color=COLOURS[i % len(COLOURS)])
        texts = ['' if value is None else f'{value:.2f}' for value in values]
        axes.bar_label(drawn, texts, padding=2, fontsize=7)
    axes.set_yticks([row + 0.425 - height / 2 for row in range(len(names))], names)
    axes.invert_yaxis()
    axes.axvline(1, color='grey', linewidth=0.8, linestyle=':')
    axes.margins(x=0.08)
    axes.set_xlabel(label)
    axes.set_title(title)
    axes.legend(fontsize=8, loc='upper left', bbox_to_anchor=(1.0, 1.0))
    _save(figure, path)


def scatter(
    path: Path, panels: Mapping[str, Mapping[str, tuple[float, float]]], x_label: str, y_label: str
) -> None:
    """Draw points with their names, a panel per group; RepVGG models are joined by lines.

    Args:
        path: The PNG to write.
        panels: (x, y) of each model by name, by the title of the panel.
        x_label: Label of every x axis.
        y_label: Label of every y axis.
    """
    figure = Figure(figsize=(7.5 * len(panels), 5.5), layout='constrained')
    for axes, (title, points) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for ours, colour in ((True, 'tab:green'), (False, 'tab:red')):
            chosen = {n: p for n, p in points.items() if n.startswith('RepVGG') == ours}
            if not chosen:
                continue
            ordered = sorted(chosen.values())
            style = '-o' if ours else 'o'
            axes.plot(*zip(*ordered, strict=True), style, color=colour, markersize=4, linewidth=0.8,
                      label='RepVGG, fused' if ours else 'baselines, conv-BN fused')  # fmt: skip
            for name, point in chosen.items():
                axes.annotate(
                    name, point, textcoords='offset points', xytext=(4, 4 if ours else -9),
                    fontsize=7, color=colour,
                )  # fmt: skip
        axes.set_xscale('log')
        axes.margins(x=0.15)
        axes.set(xlabel=x_label, ylabel=y_label, title=title)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={'Software': None})
