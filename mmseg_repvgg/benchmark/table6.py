"""RepVGG-B0 before fusing, with its branches on or off (Table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate
from mmseg_repvgg.benchmark.plots import bars
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.markdown import markdown_table

PAPER: dict[str, tuple[tuple[str, ...], float, float]] = {
    '3x3': (('3x3',), 72.39, 1810),
    '3x3, identity': (('3x3', 'identity'), 74.79, 1569),
    '3x3, 1x1': (('3x3', '1x1'), 73.15, 1230),
    '3x3, 1x1, identity': (('3x3', '1x1', 'identity'), 75.14, 1061),
}
"""Branches, top-1 on ImageNet, images a second on a 1080Ti at batch 128 before fusing."""

FULL = '3x3, 1x1, identity'
FUSED = 'fused'


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """One group, in PyTorch: other runtimes do not run the training form."""
    size, batch = (64, 1) if quick else (224, 4)
    run = dict(batch=batch, size=size)
    candidates = [
        Candidate(
            name,
            f'{NETWORKS}:ablated_classifier',
            dict(arch='B0', branches=list(branches), **run),
            batch,
        )
        for name, (branches, _, _) in PAPER.items()
    ]
    fused = Candidate(FUSED, f'{NETWORKS}:classifier', dict(name='RepVGG-B0', **run), batch)
    return {'pytorch': [*candidates, fused]}


def markdown(record: Record) -> str:
    """A row per combination of branches, and one for the fused network."""
    rows: list[list[Any]] = []
    for row in record.rows:
        _, accuracy, speed = PAPER.get(row.name, (None, None, None))
        if row.failure:
            rows.append([row.name, accuracy, f'not measured: {row.failure}', *[None] * 3])
            continue
        ratio = record.ratio(row.name, FULL)
        rows.append(
            [
                row.name,
                accuracy,
                f'{row.per_second:.2f}',
                f'{100 * row.spread:.0f} %',
                None if ratio is None else str(ratio),
                None if speed is None else f'{speed / PAPER[FULL][2]:.2f}',
            ]
        )
    return markdown_table(
        ['branches', 'top-1 (quoted)', 'images a second', 'spread', 'all branches = 1',
         'in the paper'],
        rows,
    )  # fmt: skip


def plot(record: Record, path: Path) -> None:
    """Speed relative to the block with all branches."""
    names = [*PAPER, FUSED]
    series = {
        'paper (1080Ti), quoted': [
            PAPER[n][2] / PAPER[FULL][2] if n in PAPER else None for n in names
        ],
        'measured, PyTorch': [record.speed(name, FULL) for name in names],
    }
    bars(path, names, series, 'speed, all branches = 1', 'RepVGG-B0 by branches, before fusing')
