"""RepVGG-B0 before fusing, with its branches on or off (Table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate
from mmseg_repvgg.benchmark.page import bars, number, percent, row_table
from mmseg_repvgg.benchmark.record import Record

TITLE = 'Branches before fusing (Table 6)'
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


def _quoted(name: str) -> float | None:
    """The paper's speed relative to the block with all branches."""
    return PAPER[name][2] / PAPER[FULL][2] if name in PAPER else None


def markdown(record: Record) -> str:
    """A row per combination of branches, and one for the fused network."""
    return row_table(
        ['branches', 'top-1 (quoted)', 'images a second', 'spread', 'all branches = 1',
         'in the paper'],
        record.rows,
        lambda row: [row.name, PAPER[row.name][1] if row.name in PAPER else None],
        lambda row: [
            f'{row.per_second:.2f}',
            percent(row.spread),
            record.ratio(row.name, FULL),
            number(_quoted(row.name), 2),
        ],
    )  # fmt: skip


def plot(record: Record, path: Path) -> None:
    """Speed relative to the block with all branches."""
    names = [*PAPER, FUSED]
    series = {
        'paper (1080Ti), quoted': [_quoted(name) for name in names],
        'measured, PyTorch': [record.speed(name, FULL) for name in names],
    }
    bars(path, names, series, 'speed, all branches = 1', 'RepVGG-B0 by branches, before fusing')
