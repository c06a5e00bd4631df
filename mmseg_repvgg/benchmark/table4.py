"""Throughput of classifiers, and accuracy against speed (Tables 4 and 5, Figure 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate
from mmseg_repvgg.benchmark.execution import is_pytorch
from mmseg_repvgg.benchmark.plots import scatter
from mmseg_repvgg.benchmark.record import Record, Row
from mmseg_repvgg.markdown import markdown_table


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 4 or 5."""

    accuracy: float  # top-1 on ImageNet, percent
    speed: float  # images a second on a 1080Ti, batch 128, fp32
    size: int = 224


PAPER: dict[str, PaperRow] = {
    'RepVGG-A0': PaperRow(72.41, 3256),
    'ResNet-18': PaperRow(71.16, 2442),
    'RepVGG-A1': PaperRow(74.46, 2339),
    'RepVGG-B0': PaperRow(75.14, 1817),
    'ResNet-34': PaperRow(74.17, 1419),
    'RepVGG-A2': PaperRow(76.48, 1322),
    'RepVGG-B1g4': PaperRow(77.58, 868),
    'EfficientNet-B0': PaperRow(75.11, 829),
    'RepVGG-B1g2': PaperRow(77.78, 792),
    'ResNet-50': PaperRow(76.31, 719),
    'RepVGG-B1': PaperRow(78.37, 685),
    'RegNetX-3.2GF': PaperRow(77.98, 671),
    'RepVGG-B2g4': PaperRow(78.50, 581),
    'ResNeXt-50': PaperRow(77.46, 484),
    'RepVGG-B2': PaperRow(78.78, 460),
    'ResNet-101': PaperRow(77.21, 430),
    'VGG-16': PaperRow(72.21, 415),
    'ResNet-152': PaperRow(77.78, 297),
    'ResNeXt-101': PaperRow(78.42, 295),
    # Table 5
    'RepVGG-B3g4': PaperRow(80.21, 464),
    'RepVGG-B3': PaperRow(80.52, 363),
    'RegNetX-12GF': PaperRow(80.55, 277),
    'EfficientNet-B3': PaperRow(79.31, 224, size=300),
}
"""In the paper's order."""

ELSEWHERE = {
    'mmpretrain/RepVGG-A0': 'RepVGG-A0',
    'mmpretrain/RepVGG-B1g2': 'RepVGG-B1g2',
    'timm/repvgg_a0': 'RepVGG-A0',
    'timm/repvgg_b1g4': 'RepVGG-B1g4',
}
"""Networks of other code bases, fused by their own functions, and their rows in the paper."""

REWRITTEN = ', by Winograd'
PLAIN = ('RepVGG', 'VGG', 'ResNet-')  # with 3x3 convs of stride 1 that are not depthwise

BASE = 'ResNet-50'
QUICK = ('RepVGG-A0', 'ResNet-18', 'ResNet-50', 'timm/repvgg_a0')


TOGETHER = 6
"""Networks per group, besides a ResNet-50 in each: all at once do not fit into memory."""


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """Several groups per runtime; networks of other code bases in PyTorch only."""
    names = [name for name in (QUICK if quick else [*PAPER, *ELSEWHERE]) if name != BASE]
    found = {}
    for runtime in runtimes:
        here = [name for name in names if name not in ELSEWHERE or is_pytorch(runtime)]
        for start in range(0, len(here), TOGETHER):
            part = [*here[start : start + TOGETHER], BASE]
            found[f'{runtime}, {start // TOGETHER + 1}'] = [
                candidate for name in part for candidate in _candidates(name, runtime, quick)
            ]
    return found


def _candidates(name: str, runtime: str, quick: bool) -> Iterator[Candidate]:
    batch = 1 if quick else 4
    size = 64 if quick else _paper_row(name).size
    settings = dict(name=name, batch=batch, size=size, runtime=runtime)
    yield Candidate(name, f'{NETWORKS}:classifier', settings, batch)
    if is_pytorch(runtime) and name.startswith(PLAIN):  # other runtimes choose their own algorithm
        more = dict(settings, rewrites=['winograd'])
        yield Candidate(name + REWRITTEN, f'{NETWORKS}:classifier', more, batch)


def _paper_row(name: str) -> PaperRow:
    name = name.removesuffix(REWRITTEN)
    return PAPER[ELSEWHERE.get(name, name)]


def markdown(record: Record) -> str:
    """A table per runtime, in the paper's order."""
    parts = []
    for runtime in dict.fromkeys(_runtime(row) for row in record.rows):
        rows = {row.name: row for row in reversed(record.rows) if _runtime(row) == runtime}
        table = markdown_table(
            ['model', 'top-1 (quoted)', 'images a second', 'spread', f'speed, {BASE} = 1',
             'in the paper'],
            [_cells(record, rows[name]) for name in sorted(rows, key=_sort_key)],
        )  # fmt: skip
        parts.append(f'**{runtime}**\n\n{table}')
    return '\n\n'.join(parts)


def _runtime(row: Row) -> str:
    return row.group.split(',')[0]


def _sort_key(name: str) -> tuple[int, bool]:
    """Sort key: the paper's order, each network before its Winograd form."""
    plain = name.removesuffix(REWRITTEN)
    return [*PAPER, *ELSEWHERE].index(plain), plain != name


def _cells(record: Record, row: Row) -> list[Any]:
    paper = _paper_row(row.name)
    if row.failure:
        return [row.name, paper.accuracy, f'not measured: {row.failure}', *[None] * 3]
    ratio = record.ratio(row.name, BASE, row.group)
    return [
        row.name,
        paper.accuracy,
        f'{row.per_second:.2f}',
        f'{100 * row.spread:.0f} %',
        None if ratio is None else str(ratio),
        f'{paper.speed / PAPER[BASE].speed:.2f}',
    ]


def plot(record: Record, path: Path) -> None:
    """Quoted accuracy against measured speed, as in the paper's Figure 1."""
    panels: dict[str, dict[str, tuple[float, float]]] = {}
    for row in record.rows:
        if row.seconds and row.name not in ELSEWHERE:
            name = row.name.removesuffix(REWRITTEN)
            panel = _runtime(row) + (REWRITTEN if name != row.name else '')
            panels.setdefault(panel, {})[name] = (row.per_second, PAPER[name].accuracy)
    scatter(path, panels, 'images a second, measured', 'ImageNet top-1 (%), quoted from the paper')
