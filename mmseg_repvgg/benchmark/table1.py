"""The speed of a convolution by kernel size (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate, Row
from mmseg_repvgg.benchmark.page import bars, row_table
from mmseg_repvgg.benchmark.record import Record

TITLE = 'Kernel sizes (Table 1)'
PAPER = {1: 9.96, 3: 38.10, 5: 10.57, 7: 9.38}
"""Theoretical TFLOPS by kernel size (two operations per multiply-add) on a 1080Ti, batch 32, 2048
channels, 56x56."""


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """A group per runtime: 512 channels, batch 1, 56x56, which a CPU does in a second."""
    channels, size = (32, 14) if quick else (512, 56)
    return {
        runtime: [
            Candidate(
                f'{k}x{k}',
                f'{NETWORKS}:convolution',
                dict(kernel_size=k, channels=channels, size=size, runtime=runtime),
            )
            for k in (list(PAPER)[:2] if quick else PAPER)
        ]
        for runtime in runtimes
    }


def _flops(row: Row) -> float:
    return row.info['flops']


def markdown(record: Record) -> str:
    """A row per kernel size and runtime; a multiply-add counts as two, as in the paper."""
    return row_table(
        ['runtime', 'kernel', 'FLOPs (B)', 'ms', 'GFLOPS', '1x1 = 1', 'in the paper'],
        record.rows,
        lambda row: [row.group, row.name],
        lambda row: [
            f'{_flops(row) / 1e9:.1f}',
            f'{1e3 * row.median:.1f}',
            f'{2 * _flops(row) / row.median / 1e9:.0f}',
            record.ratio(row.name, '1x1', row.group, _flops),
            f'{PAPER[int(row.name[0])] / PAPER[1]:.2f}',
        ],
    )


def plot(record: Record, path: Path) -> None:
    """Theoretical GFLOPS relative to the 1x1 kernel's."""
    names = [f'{k}x{k}' for k in PAPER]
    series: dict[str, list[float | None]] = {
        'paper (1080Ti), quoted': [value / PAPER[1] for value in PAPER.values()]
    }
    for group in record.groups:
        series[group] = [record.speed(name, '1x1', group, _flops) for name in names]
    bars(path, names, series, 'theoretical FLOPS, 1x1 = 1', 'Convolutions by kernel size')
