"""Throughput of classifiers, and accuracy against speed (Tables 4 and 5, Figure 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mmseg_repvgg.analysis.paper_tables import PAPER_ROWS as PAPER
from mmseg_repvgg.analysis.paper_tables import PaperRow
from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate, Row
from mmseg_repvgg.benchmark.forward import is_pytorch
from mmseg_repvgg.benchmark.page import percent, row_table, scatter, sections
from mmseg_repvgg.benchmark.record import Record

TITLE = 'Classifiers (Tables 4 and 5)'
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
    tables = {}
    for runtime in dict.fromkeys(_runtime(row) for row in record.rows):
        rows = {row.name: row for row in reversed(record.rows) if _runtime(row) == runtime}
        tables[runtime] = row_table(
            ['model', 'top-1 (quoted)', 'images a second', 'spread', f'speed, {BASE} = 1',
             'in the paper'],
            sorted(rows.values(), key=_sort_key),
            lambda row: [row.name, _paper_row(row.name).accuracy],
            lambda row: [
                f'{row.per_second:.2f}',
                percent(row.spread),
                record.ratio(row.name, BASE, row.group),
                f'{_paper_row(row.name).speed / PAPER[BASE].speed:.2f}',
            ],
        )  # fmt: skip
    return sections(tables)


def _runtime(row: Row) -> str:
    return row.group.split(',')[0]


def _sort_key(row: Row) -> tuple[int, bool]:
    """Sort key: the paper's order, each network before its Winograd form."""
    plain = row.name.removesuffix(REWRITTEN)
    return [*PAPER, *ELSEWHERE].index(plain), plain != row.name


def plot(record: Record, path: Path) -> None:
    """Quoted accuracy against measured speed, as in the paper's Figure 1."""
    panels: dict[str, dict[str, tuple[float, float]]] = {}
    for row in record.rows:
        if row.seconds and row.name not in ELSEWHERE:
            name = row.name.removesuffix(REWRITTEN)
            panel = _runtime(row) + (REWRITTEN if name != row.name else '')
            panels.setdefault(panel, {})[name] = (row.per_second, PAPER[name].accuracy)
    scatter(path, panels, 'images a second, measured', 'ImageNet top-1 (%), quoted from the paper')
