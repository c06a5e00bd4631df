"""The curated configs of ``configs/dropin``, and real-time networks of mmseg compared with ours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate, Row
from mmseg_repvgg.benchmark.page import bars, number, percent, row_table, sections
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.markdown import markdown_table

TITLE = 'Curated configs at 512x1024'

SIZE = (512, 1024)
"""Height and width in pixels, as in mmseg's Cityscapes crops."""
QUICK_SIZE = (64, 128)


@dataclass(frozen=True)
class Curated:
    """A config of ours, and the mmseg config that it is based on."""

    config: str
    theirs: str
    backbone: str  # of the mmseg config


CURATED = {
    'DeepLabV3+ B1g2': Curated(
        'dropin/deeplabv3plus_repvgg_b1g2.py',
        'mmseg::deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024',
        'ResNet-50',
    ),
    'UPerNet B1': Curated(
        'dropin/upernet_repvgg_b1.py',
        'mmseg::upernet_r50_4xb2-40k_cityscapes-512x1024',
        'ResNet-50',
    ),
    'SemFPN A2': Curated(
        'dropin/sem_fpn_repvgg_a2.py', 'mmseg::fpn_r50_4xb2-80k_cityscapes-512x1024', 'ResNet-50'
    ),
    'FCN A1': Curated(
        'dropin/fcn_repvgg_a1.py', 'mmseg::fcn_r50-d8_4xb2-40k_cityscapes-512x1024', 'ResNet-50'
    ),
    'OCRNet B0': Curated(
        'dropin/ocrnet_repvgg_b0.py',
        'mmseg::ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024',
        'ResNet-101',
    ),
    'UPerNet D2se': Curated(
        'dropin/upernet_repvgg_d2se.py',
        'mmseg::upernet_r101_4xb2-80k_cityscapes-512x1024',
        'ResNet-101',
    ),
    'OCRNet L2pse': Curated(
        'dropin/ocrnet_repvgg_l2pse.py',
        'mmseg::ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024',
        'ResNet-101',
    ),
}
OURS = {
    'FPN-64 A0': 'dropin/realtime_repvgg_a0.py',
    'FPN-128 A1': 'dropin/realtime_repvgg_a1.py',
}
THEIRS = {
    'PIDNet-S': 'mmseg::pidnet-s_2xb6-120k_1024x1024-cityscapes',
    'DDRNet-23-slim': 'mmseg::ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024',
    'BiSeNetV2': 'mmseg::bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024',
}
REAL_TIME = 'real time'
BASE = 'PIDNet-S'

THEIR_BACKBONE = ' of mmseg'
TRAINED, FUSED, REWRITTEN = 'as trained', 'fused', 'rewritten'
MORE = ('dilation', 'pyramid', 'winograd')
"""Rewrites in PyTorch; convs and linear layers can no longer be counted then."""


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """A group per curated config, in PyTorch, and one of the real-time networks per runtime."""
    found = {}
    if 'pytorch' in runtimes:
        for name, curated in CURATED.items():
            if not quick or name == 'SemFPN A2':
                found[name] = list(_curated_candidates(name, curated, quick))
    for runtime in runtimes:
        found[f'{REAL_TIME}, {runtime}'] = list(_real_time_candidates(runtime, quick))
    return found


def _curated_candidates(name: str, curated: Curated, quick: bool) -> Iterator[Candidate]:
    yield _candidate(f'{name}, {TRAINED}', curated.config, (), quick)
    fused = _fusing(name)
    yield _candidate(f'{name}, {FUSED}', curated.config, fused, quick)
    yield _candidate(f'{name}, {REWRITTEN}', curated.config, (*fused, *MORE), quick)
    theirs = f'{name.rpartition(" ")[0]} {curated.backbone}{THEIR_BACKBONE}'
    yield _candidate(f'{theirs}, {FUSED}', curated.theirs, _fusing(theirs), quick)


def _real_time_candidates(runtime: str, quick: bool) -> Iterator[Candidate]:
    """The forms in PyTorch; for another runtime, the fused form in it and in PyTorch."""
    for name, config in {**OURS, **THEIRS}.items():
        fused = _fusing(name)
        if name in OURS and runtime == 'pytorch':
            yield _candidate(f'{name}, {TRAINED}', config, (), quick)
        yield _candidate(f'{name}, {FUSED}', config, fused, quick)
        if runtime == 'pytorch':
            yield _candidate(f'{name}, {REWRITTEN}', config, (*fused, *MORE), quick)
        else:
            yield _candidate(f'{name}, {FUSED}, {runtime}', config, fused, quick, runtime)


def _fusing(name: str) -> tuple[str, ...]:
    """The rewrites that fuse a network."""
    is_theirs = name in THEIRS or name.endswith(THEIR_BACKBONE)
    return ('batchnorm',) if is_theirs else ('branches', 'batchnorm')


def _candidate(
    name: str, config: str, rewrites: tuple[str, ...], quick: bool, runtime: str = 'pytorch'
) -> Candidate:
    settings = dict(
        config=config,
        rewrites=list(rewrites),
        runtime=runtime,
        count_flops=not {*rewrites} & {*MORE},
        size=list(QUICK_SIZE if quick else SIZE),
    )
    return Candidate(name, f'{NETWORKS}:segmentor', settings)


def reference(candidate: Candidate) -> Candidate | None:
    """The same network fused, in PyTorch."""
    name = candidate.name.split(', ')[0]
    fused = dict(rewrites=list(_fusing(name)), runtime='pytorch', count_flops=True)
    settings = {**candidate.settings, **fused}
    return replace(candidate, name=f'{name}, {FUSED}', settings=settings)


def markdown(record: Record) -> str:
    """One table of all networks in PyTorch, and the details of every group."""
    tables = {}
    for group, rows in record.groups.items():
        base = base_of(rows)
        tables[group] = row_table(
            ['network', 'parameters, M', 'G multiply-adds', 'ms an image', 'spread',
             f'speed, {base} = 1', 'argmax agreement', 'peak memory'],
            rows,
            lambda row: [row.name, *([None] * 2 if row.failure else _costs(row))],
            partial(_figures, record, base),
        )  # fmt: skip
    return f'{_overview(record)}\n\n{sections(tables)}'


def _overview(record: Record) -> str:
    """A row per network, in milliseconds an image."""
    lines: dict[str, list[Any]] = {}
    for group, rows in record.groups.items():
        if any(row.settings.get('runtime') != 'pytorch' for row in rows):
            continue
        names = dict.fromkeys(row.name.split(', ')[0] for row in rows)
        theirs = next((n for n in names if n.endswith(THEIR_BACKBONE)), None)
        for name in names:
            fused = record.row(f'{name}, {FUSED}', group)
            if fused is None or name == theirs or name in lines:
                continue
            forms = [record.row(f'{name}, {form}', group) for form in (TRAINED, FUSED, REWRITTEN)]
            forms.append(record.row(f'{theirs}, {FUSED}', group))
            times = [None if row is None else f'{1e3 * row.median:.0f}' for row in forms]
            lines[name] = [name, *_costs(fused), *times]
    return markdown_table(
        ['network', 'parameters, M', 'G multiply-adds', 'as trained, ms', 'fused, ms',
         'rewritten, ms', "with mmseg's own backbone, fused, ms"],
        lines.values(),
    )  # fmt: skip


def base_of(rows: Sequence[Row]) -> str:
    """Name of the row that ratios refer to: PIDNet-S in the group's runtime, or mmseg's config."""
    names = [row.name for row in rows]
    wanted = [n for n in names if n.startswith(f'{BASE}, {FUSED}') or f'{THEIR_BACKBONE}, ' in n]
    return wanted[-1] if wanted else names[0]


def _costs(row: Row) -> list[str | None]:
    flops = row.info.get('flops')
    return [f'{row.info["parameters"] / 1e6:.2f}', number(flops, 1, 1e9)]


def _figures(record: Record, base: str, row: Row) -> list[Any]:
    return [
        f'{1e3 * row.median:.0f}',
        percent(row.spread),
        record.ratio(row.name, base, row.group),
        percent(row.agreement, 3),
        number(row.peak_memory, 0, 2**20, ' MiB'),
    ]


def plot(record: Record, path: Path) -> None:
    """Speed of the real-time networks relative to fused PIDNet-S in the same runtime."""
    names = [*OURS, *THEIRS]
    series: dict[str, list[float | None]] = {}
    for group, rows in record.groups.items():
        runtime = group.removeprefix(f'{REAL_TIME}, ')
        if runtime == group:
            continue
        where = '' if runtime == 'pytorch' else f', {runtime}'
        for form in (f'{FUSED}{where}', REWRITTEN):
            speeds = [record.speed(f'{n}, {form}', base_of(rows), group) for n in names]
            if any(speeds):
                series[f'{runtime}, {form.split(",")[0]}'] = speeds
    bars(path, names, series, f'times as fast as fused {BASE}', 'Real-time networks, 512x1024')
