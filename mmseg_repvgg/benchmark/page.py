"""What the pages of all benchmarks share: tables, how they were measured, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.benchmark.candidate import Row
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.markdown import markdown_table

COLOURS = [matplotlib.colormaps['tab20'](i) for i in range(20)]


def row_table(
    titles: Sequence[str],
    rows: Iterable[Row],
    labels: Callable[[Row], list[Any]],
    figures: Callable[[Row], list[Any]],
) -> str:
    """A table in Markdown with a line per row of a record.

    Args:
        titles: Titles of the columns.
        rows: The rows.
        labels: Returns the first cells of a row; of a row without figures, the reason follows.
        figures: Returns the other cells; None is a dash.
    """
    lines = []
    for row in rows:
        rest = [f'not measured: {row.failure}'] if row.failure else figures(row)
        cells = [*labels(row), *rest]
        lines.append([*cells, *[None] * (len(titles) - len(cells))])
    return markdown_table(titles, lines)


def sections(tables: Mapping[str, str]) -> str:
    """Tables below their titles."""
    return '\n\n'.join(f'**{title}**\n\n{table}' for title, table in tables.items())


def percent(share: float | None, decimals: int = 0) -> str | None:
    """A share as a cell of a table."""
    return None if share is None else f'{100 * share:.{decimals}f} %'


def number(value: float | None, decimals: int, divisor: float = 1, unit: str = '') -> str | None:
    """A number as a cell of a table."""
    return None if value is None else f'{value / divisor:.{decimals}f}{unit}'


def provenance(record: Record) -> str:
    """The text under a table: where its figures come from."""
    machine, protocol = record.machine, record.protocol
    precision = 'fp32 unless a group is named otherwise' if machine['gpu'] else 'fp32'
    blocks = f' of at least {protocol["block"]:g} s' if 'block' in protocol else ''
    versions = ', '.join(f'{name} {number}' for name, number in record.versions.items())
    return (
        f'Measured by `{record.command}` on {record.date} (commit {record.commit}): '
        f'{machine["processor"]}, {machine["cores"]} cores, {machine["gpu"] or "no GPU"}; '
        f'{protocol["threads"]} threads, {precision}, {protocol["warm_up"]} warm-up and '
        f'{protocol["rounds"]} timed rounds{blocks}, the models of a group in turn. Times are '
        'medians over the rounds; a ratio is the geometric mean of the ratios of every round, with '
        f'its 95 % confidence interval: undecided where that includes 1. {versions}.'
    )


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
