"""The speed of a convolution by kernel size (Table 1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmseg_repvgg.analysis.time_in_turn import Ratio, paired_ratio
from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate
from mmseg_repvgg.benchmark.plots import bars
from mmseg_repvgg.benchmark.record import Record, Row
from mmseg_repvgg.markdown import markdown_table

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


def gflops(row: Row) -> float:
    """Billions of operations a second, counting a multiply-add as two, as the paper does."""
    return 2 * row.info['flops'] / row.median / 1e9


def _ratio(row: Row, base: Row) -> Ratio:
    """Operations a second relative to those of another row of its group."""
    return paired_ratio(base.seconds, row.seconds, row.info['flops'] / base.info['flops'])


def markdown(record: Record) -> str:
    """A row per kernel size and runtime."""
    rows: list[list[Any]] = []
    for row in record.rows:
        if row.failure:
            rows.append([row.group, row.name, f'not measured: {row.failure}', *[None] * 4])
            continue
        base = record.row('1x1', row.group)
        ratio = _ratio(row, base) if base else None
        rows.append(
            [
                row.group,
                row.name,
                f'{row.info["flops"] / 1e9:.1f}',
                f'{1e3 * row.median:.1f}',
                f'{gflops(row):.0f}',
                None if ratio is None else str(ratio),
                f'{PAPER[int(row.name[0])] / PAPER[1]:.2f}',
            ]
        )
    return markdown_table(
        ['runtime', 'kernel', 'FLOPs (B)', 'ms', 'GFLOPS', '1x1 = 1', 'in the paper'], rows
    )


def plot(record: Record, path: Path) -> None:
    """Theoretical GFLOPS relative to the 1x1 kernel's."""
    names = [f'{k}x{k}' for k in PAPER]
    series: dict[str, list[float | None]] = {
        'paper (1080Ti), quoted': [value / PAPER[1] for value in PAPER.values()]
    }
    for group in dict.fromkeys(row.group for row in record.rows):
        found = [record.row(name, group) for name in names]
        base = found[0]
        series[group] = [_ratio(r, base).value if r and base else None for r in found]
    bars(path, names, series, 'theoretical FLOPS, 1x1 = 1', 'Convolutions by kernel size')
