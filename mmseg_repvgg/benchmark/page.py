"""What the pages of all benchmarks share: tables, how they were measured, and pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmseg_repvgg.benchmark.candidate import Row
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.markdown import markdown_table
from mmseg_repvgg.plots.style import (
    COLOURS,
    bar_height,
    grouped_bars,
    legend_above,
    new_figure,
    place_labels,
    plain_ticks,
    save,
)


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
    instructions = f' with {machine["instructions"]}' if 'instructions' in machine else ''
    versions = ', '.join(f'{name} {number}' for name, number in record.versions.items())
    return (
        f'Measured by `{record.command}` on {record.date} (commit {record.commit}): '
        f'{machine["processor"]}{instructions}, {machine["cores"]} cores, '
        f'{machine["gpu"] or "no GPU"}; '
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
    figure = new_figure(bar_height(names, series))
    axes = figure.subplots()
    grouped_bars(axes, names, series)
    axes.axvline(1, color='grey', linewidth=0.8, linestyle=':')
    axes.set_xlabel(label)
    figure.suptitle(title)
    legend_above(axes)
    save(figure, path)


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
    figure = new_figure(5.5 * len(panels))
    kinds = {True: ('RepVGG, fused', COLOURS[0]), False: ('baselines, conv-BN fused', COLOURS[3])}
    for axes, (title, points) in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.items(), strict=True
    ):
        labels = [(name, point, kinds[_is_ours(name)][1]) for name, point in points.items()]
        for ours, (kind, colour) in kinds.items():
            ordered = sorted(point for name, point in points.items() if _is_ours(name) == ours)
            if ordered:
                style = '-o' if ours else 's'
                axes.plot(
                    *zip(*ordered, strict=True),
                    style,
                    color=colour,
                    markersize=5,
                    linewidth=0.8,
                    label=kind,
                )
        axes.set_xscale('log')
        axes.margins(x=0.1, y=0.1)
        plain_ticks(axes.xaxis)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.set_title(title, loc='left')
        axes.grid(alpha=0.3)
        legend_above(axes)
        place_labels(axes, labels)
    save(figure, path)


def _is_ours(name: str) -> bool:
    return name.startswith('RepVGG')
