"""PSPNet at 713x713, with and without the rewrites, in every runtime (Table 8)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate, Row
from mmseg_repvgg.benchmark.forward import is_pytorch
from mmseg_repvgg.benchmark.page import bars, number, percent, row_table, sections
from mmseg_repvgg.benchmark.record import Record

TITLE = 'PSPNet at 713x713 (Table 8)'


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 8."""

    config: str
    miou: float  # Cityscapes val, percent
    speed: float  # images a second on a 1080Ti, batch 16, fp32, 713x713


PAPER: dict[str, PaperRow] = {
    'RepVGG-B1g2-fast': PaperRow('pspnet_repvgg_b1g2_fast.py', 78.88, 10.9),
    'ResNet-50': PaperRow('pspnet_r50.py', 77.17, 10.4),
    'RepVGG-B1g2': PaperRow('pspnet_repvgg_b1g2.py', 78.70, 8.0),
    'RepVGG-B2-fast': PaperRow('pspnet_repvgg_b2_fast.py', 79.52, 6.9),
    'ResNet-101': PaperRow('pspnet_r101.py', 78.51, 6.7),
    'RepVGG-B2': PaperRow('pspnet_repvgg_b2.py', 80.57, 4.5),
}
"""In the paper's order."""

REWRITTEN = ', rewritten'
UNDILATED = 'RepVGG-B2 without dilation'
USUAL = "RepVGG-B2 of mmpretrain, fused by its own method, in mmseg's PSPNet"
BASE = 'ResNet-101'
FUSED_RESNET = ('batchnorm',)
FUSED = ('branches', *FUSED_RESNET)
MORE = ('dilation', 'pyramid')
MORE_IN_PYTORCH = (*MORE, 'winograd')
ACROSS = 'across runtimes'

QUICK: dict[str, PaperRow] = {
    'RepVGG-A0': PaperRow('demo_pspnet_repvgg_a0.py', 0, 0),
    'ResNet-101': PaperRow('pspnet_r50.py', 0, 0),
}
"""Small networks, for a test of the benchmark itself."""


IN_TURN = {
    'B2': ('RepVGG-B2', BASE),
    'B1g2': ('RepVGG-B1g2', 'ResNet-50', BASE),
    'fast': ('RepVGG-B2-fast', 'RepVGG-B1g2-fast', BASE),
}
"""Networks per group; not all in one, because a runtime may hold gigabytes for each."""


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """Three groups per runtime, and one of rewritten B2 in all runtimes and mmpretrain's B2."""
    if quick:
        return {runtime: list(_both_forms(runtime, QUICK, quick)) for runtime in runtimes}
    found = {}
    for runtime in runtimes:
        for part, names in IN_TURN.items():
            rows = {name: PAPER[name] for name in names}
            found[f'{runtime}, {part}'] = list(_both_forms(runtime, rows, quick))
        undilated = dict(backbone=dict(dilations=(1, 1, 1, 1)))
        found[f'{runtime}, B2'].append(
            _candidate(UNDILATED, PAPER['RepVGG-B2'].config, FUSED, quick, runtime, **undilated)
        )
    found[ACROSS] = list(_across_runtimes(runtimes))
    return found


def _both_forms(runtime: str, rows: dict[str, PaperRow], quick: bool) -> Iterator[Candidate]:
    """Every network fused, as in the paper, and with the rewrites."""
    for name, row in rows.items():
        for suffix, more in (('', ()), (REWRITTEN, _extra_rewrites(runtime))):
            yield _candidate(name + suffix, row.config, _base_rewrites(name) + more, quick, runtime)


def reference(candidate: Candidate) -> Candidate | None:
    """The same network fused, in PyTorch; None for networks of other code bases."""
    if candidate.name == USUAL:
        return None
    name = candidate.name.split(REWRITTEN)[0]
    settings = dict(candidate.settings, rewrites=list(_base_rewrites(name)), runtime='pytorch')
    return replace(candidate, name=name, settings=settings)


def _across_runtimes(runtimes: Sequence[str]) -> Iterator[Candidate]:
    config = PAPER['RepVGG-B2'].config
    theirs = dict(
        type='mmpretrain.RepVGG',
        arch='B2',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
    )
    yield _candidate(USUAL, config, ('own',), False, 'pytorch', backbone=theirs)
    for runtime in runtimes:
        rewrites = FUSED + _extra_rewrites(runtime)
        yield _candidate(f'RepVGG-B2{REWRITTEN}, {runtime}', config, rewrites, False, runtime)


def _extra_rewrites(runtime: str) -> tuple[str, ...]:
    return MORE_IN_PYTORCH if is_pytorch(runtime) else MORE


def _base_rewrites(name: str) -> tuple[str, ...]:
    return FUSED if name.startswith('RepVGG') else FUSED_RESNET


def _candidate(
    name: str, config: str, rewrites: tuple[str, ...], quick: bool, runtime: str, **more: Any
) -> Candidate:
    size = 97 if quick else 713
    settings = dict(config=config, rewrites=list(rewrites), size=size, runtime=runtime, **more)
    return Candidate(name, f'{NETWORKS}:segmentor', settings)


def markdown(record: Record) -> str:
    """A table per group."""
    tables = {}
    for group, rows in record.groups.items():
        base = USUAL if group == ACROSS else BASE
        tables[group] = row_table(
            ['network', 'seconds an image', 'spread', f'speed, {base} = 1', 'in the paper',
             'argmax agreement', 'peak memory'],
            rows,
            lambda row: [row.name],
            partial(_figures, record, base),
        )  # fmt: skip
    return sections(tables)


def _figures(record: Record, base: str, row: Row) -> list[Any]:
    paper = PAPER.get(row.name.removesuffix(REWRITTEN)) if base == BASE else None
    return [
        f'{row.median:.2f}',
        percent(row.spread),
        record.ratio(row.name, base, row.group),
        paper and f'{paper.speed / PAPER[BASE].speed:.2f}',
        percent(row.agreement, 3),
        number(row.peak_memory, 2, 2**30, ' GiB'),
    ]


def _runtime(row: Row) -> str:
    return row.settings.get('runtime', row.group)


def plot(record: Record, path: Path) -> None:
    """Speed relative to ResNet-101 by runtime, next to the paper's."""
    rows = [row for row in record.rows if row.group != ACROSS and row.name != UNDILATED]
    group_of = {(_runtime(row), row.name): row.group for row in rows}
    runtimes = list(dict.fromkeys(_runtime(row) for row in rows))
    names = [n for n in PAPER if any(row.name == n for row in rows)] or list(QUICK)
    series: dict[str, list[float | None]] = {}
    if all(name in PAPER for name in names):
        series['paper (1080Ti), quoted'] = [PAPER[n].speed / PAPER[BASE].speed for n in names]
    for runtime in runtimes:
        for suffix in ('', REWRITTEN):
            series[runtime + suffix] = [
                record.speed(name + suffix, BASE, group_of.get((runtime, name + suffix), ''))
                for name in names
            ]
    bars(path, names, series, 'times as fast as fused ResNet-101', 'PSPNet, 713x713, batch 1')
