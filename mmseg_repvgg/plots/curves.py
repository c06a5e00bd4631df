"""Loss, scores and learning rate of trainings, from the logs in their work folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mmseg_repvgg.checks import check_integer
from mmseg_repvgg.plots.style import COLOURS, legend_above, new_figure

PANELS = {
    'loss': 'training loss',
    'mIoU': 'mIoU, validation, %',
    'accuracy/top1': 'top-1, validation, %',
    'lr': 'learning rate',
}
"""What is drawn, if it was logged: the label by the key in the log."""


@dataclass(frozen=True)
class Training:
    """What a training logged."""

    name: str
    rows: list[tuple[int, dict[str, Any]]]  # iterations and what was logged then, in order

    def values(self, key: str) -> tuple[list[int], list[float]]:
        """The iterations at which ``key`` was logged, and its values."""
        found = [(iteration, row[key]) for iteration, row in self.rows if key in row]
        return [iteration for iteration, _ in found], [value for _, value in found]


def read_trainings(folders: Sequence[Path]) -> list[Training]:
    """Read trainings, named by their folders, or by the whole paths if these names repeat.

    Raises:
        ValueError: As :func:`read_training`.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return [read_training(*pair) for pair in zip(folders, names, strict=True)]


def read_training(folder: Path, name: str = '', evaluations: bool = False) -> Training:
    """Read and join the logs of a training, ``<folder>/<time>/vis_data/scalars.json``.

    Where a training was resumed, the later log counts from its first iteration on: what the earlier
    one logged beyond the checkpoint was done again.

    Args:
        folder: The work folder.
        name: Of the training.
        evaluations: Whether logs without a loss count: those of evaluations alone, and of trainings
            too short to log one.

    Raises:
        ValueError: If there is no log of a training, or one is damaged.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    for file in sorted(folder.glob('*/vis_data/scalars.json')):
        log = _read_log(file)
        if evaluations or any('loss' in row for _, row in log):
            rows = [(i, row) for i, row in rows if i < log[0][0]] + log
    if not rows:
        raise ValueError(
            f'no log of a training found in {str(folder)!r}: give a work folder, which has files '
            'such as 20240131_120000/vis_data/scalars.json'
        )
    return Training(name, rows)


def _read_log(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """Iterations and rows of a log.

    A validation of an epoch-based training has the number of the epoch as its step; it gets the
    iteration of the row before it.
    """
    lines = file.read_text(encoding='utf-8').splitlines()
    rows: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            step = int(row['step'])
        except (json.JSONDecodeError, TypeError, KeyError) as error:
            if number == len(lines):  # the training was killed while it wrote
                break
            raise ValueError(f'{file}, line {number} is not a row of a log: {error!r}') from error
        before = rows[-1][0] if rows and 'loss' not in row else 0
        rows.append((max(step, before), row))
    return rows


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of each value and those before it, ``window`` in all; NaN if one of them is."""
    parts = (values[max(0, i + 1 - window) : i + 1] for i in range(len(values)))
    return [sum(part) / len(part) for part in parts]


def draw_curves(trainings: Sequence[Training], window: int | None = None) -> Figure:
    """Draw trainings into a panel for each of :data:`PANELS`.

    Args:
        trainings: They share the panels, in different colours.
        window: Logged losses that the thick line averages over; by default a twentieth of them. The
            pale line has every loss.

    Raises:
        ValueError: If ``window`` is not a positive integer.
    """
    if window is not None:
        check_integer('smooth', window, 1)
    panels = {k: v for k, v in PANELS.items() if any(t.values(k)[0] for t in trainings)}
    figure = new_figure(0.6 + 2.6 * len(panels))
    all_axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axes, (key, label) in zip(all_axes, panels.items(), strict=True):
        for i, training in enumerate(trainings):
            style: dict[str, Any] = dict(color=COLOURS[i % len(COLOURS)], label=training.name)
            style['linestyle'] = ('-', '--', ':')[i // len(COLOURS) % 3]
            iterations, values = training.values(key)
            if key == 'loss':
                axes.plot(iterations, values, alpha=0.3, linewidth=0.8, color=style['color'])
                values = running_mean(values, window or max(1, len(values) // 20))
            marker = '' if key in ('loss', 'lr') else 'o'
            axes.plot(iterations, values, marker=marker, markersize=4, linewidth=1.5, **style)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    all_axes[-1].set_xlabel('iteration')
    legend_above(all_axes[0])
    return figure
