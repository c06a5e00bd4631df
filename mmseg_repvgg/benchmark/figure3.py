"""Peak memory of feature maps in plain and in residual blocks (Figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmseg_repvgg.benchmark.candidate import Built, Candidate
from mmseg_repvgg.benchmark.page import bars, number, row_table
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.benchmark.worker import resident_peak

TITLE = 'Memory of blocks (Figure 3)'
PAPER = {'plain': 1, 'residual': 2}
"""Peak memory besides the block's input, in feature maps of the input's size, by kind: two 3x3
convs with ReLU, where the input is freed after the first conv, or is added before the last ReLU."""


def block(kind: str, channels: int, size: int) -> Built:
    """A block whose peak memory is counted without weights and input, in bytes.

    Args:
        kind: Key of :data:`PAPER`.
        channels: Channels of the feature map.
        size: Height and width of the feature map.
    """
    place: Any = dict(
        device='cuda' if torch.cuda.is_available() else 'cpu', memory_format=torch.channels_last
    )
    first, second = (nn.Conv2d(channels, channels, 3, padding=1).to(**place) for _ in range(2))
    map_bytes = channels * size**2 * 4

    @torch.inference_mode()
    def run(side: int) -> None:
        x = torch.empty((1, channels, side, side), **place).fill_(1)
        y = first(x).relu_()
        if kind == 'residual':
            second(y).add_(x).relu_()
        else:
            del x
            second(y).relu_()

    run(8)  # libraries allocate their own memory in the first call
    peak: Callable[[], int] = resident_peak
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        peak, before = torch.cuda.max_memory_allocated, torch.cuda.memory_allocated()
    else:
        before = resident_peak(reset=True)
    return Built(
        call=lambda: run(size),
        info=dict(map_bytes=map_bytes),
        memory=lambda: peak() - before - map_bytes,
    )


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """Both kinds, in PyTorch."""
    settings = dict(channels=16 if quick else 32, size=512 if quick else 1536)
    return {
        'pytorch': [
            Candidate(kind, f'{__name__}:block', dict(kind=kind, **settings)) for kind in PAPER
        ]
    }


def multiples(record: Record, name: str) -> float | None:
    """Peak memory of a kind besides the input, in feature maps of the input's size."""
    row = record.row(name)
    if row is None or row.peak_memory is None:
        return None
    return row.peak_memory / row.info['map_bytes']


def markdown(record: Record) -> str:
    """A row per kind."""
    return row_table(
        ['block', 'peak besides input and weights', 'in maps of the input', 'in the paper'],
        record.rows,
        lambda row: [row.name],
        lambda row: [
            number(row.peak_memory, 0, 2**20, ' MiB'),
            number(multiples(record, row.name), 2),
            PAPER[row.name],
        ],
    )


def plot(record: Record, path: Path) -> None:
    """Peaks next to the paper's."""
    series: dict[str, list[float | None]] = {
        'paper, quoted': list(PAPER.values()),
        'measured, PyTorch': [multiples(record, kind) for kind in PAPER],
    }
    bars(path, list(PAPER), series, 'maps of the size of the input', 'Peak memory of a block')
