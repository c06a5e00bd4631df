"""Speed of the networks of ``configs/camvid``, fused, at the size of CamVid's images.

The fastest ones also at the size that networks for real time are compared at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmseg_repvgg.benchmark.candidate import NETWORKS, Candidate, Row
from mmseg_repvgg.benchmark.page import bars, number, percent, row_table, sections
from mmseg_repvgg.benchmark.record import Record

TITLE = 'Networks of configs/camvid'

SIZE, QUICK_SIZE = (360, 480), (64, 96)
REAL_TIME_SIZE = (512, 1024)
"""Height and width in pixels."""

OURS = {
    'RepVGG-A0 + UAFM': 'camvid/uafm_repvgg_a0.py',
    'RepVGG-A0 short + UAFM': 'camvid/uafm_repvgg_a0_short.py',
    'RepVGG-A0 slim + UAFM': 'camvid/uafm_repvgg_a0_slim.py',
    'RepVGG-A1 + UAFM': 'camvid/uafm_repvgg_a1.py',
    'RepVGG-A2 + UAFM': 'camvid/uafm_repvgg_a2.py',
    'RepVGG-B0 + UAFM': 'camvid/uafm_repvgg_b0.py',
    'RepVGG-A0 + PSP': 'camvid/pspnet_repvgg_a0.py',
}
SAME_WHEN_FUSED = {
    'QARepVGG-A0 + UAFM': 'camvid/uafm_qarepvgg_a0.py',
    'plain A0 + UAFM': 'camvid/uafm_plain_a0.py',
    'A0 of mmpretrain + UAFM': 'camvid/uafm_mmpretrain_a0.py',
}
"""Fused, these are the network of the first row of :data:`OURS`, so their speed is its own."""
THEIRS = {
    'PIDNet-S': 'camvid/pidnet_s.py',
    'DDRNet-23-slim': 'camvid/ddrnet_23_slim.py',
    'BiSeNetV2': 'camvid/bisenetv2.py',
    'STDC1-Seg': 'camvid/stdc1.py',
    'PSPNet-R18': 'camvid/pspnet_r18.py',
}
NETWORK_CONFIGS = {**OURS, **SAME_WHEN_FUSED, **THEIRS}
"""The config of each network; they are trained on equal terms."""
RECIPES = {
    'every pixel': 'camvid/recipes/every_pixel.py',
    'moving average of the weights': 'camvid/recipes/ema.py',
    'with Lovasz loss': 'camvid/recipes/lovasz.py',
    'class weights': 'camvid/recipes/class_weights.py',
    'no weight decay on norms and biases': 'camvid/recipes/no_branch_decay.py',
    'distilled from B0': 'camvid/recipes/distilled.py',
    'crops of 360x480, as many pixels': 'camvid/recipes/larger_crops.py',
    'three times as long': 'camvid/recipes/longer.py',
}
"""The first network of :data:`OURS`, trained in other ways."""
TRAINED = {**NETWORK_CONFIGS, **RECIPES}
"""All that :mod:`mmseg_repvgg.benchmark.camvid_trainings` trains."""
REAL_TIME = (
    'RepVGG-A0 + UAFM',
    'RepVGG-A0 short + UAFM',
    'RepVGG-A0 slim + UAFM',
    'PIDNet-S',
    'DDRNet-23-slim',
    'BiSeNetV2',
)
"""Networks that are also measured at :data:`REAL_TIME_SIZE`."""
BASE = 'PIDNet-S'
FUSED, REWRITTEN = 'fused', 'rewritten'
MORE = ('dilation', 'pyramid', 'winograd')
"""Rewrites in PyTorch after fusing."""


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """Two groups per runtime: every network fused, in PyTorch also rewritten; and the fastest."""
    found = {}
    small, large = (QUICK_SIZE, QUICK_SIZE) if quick else (SIZE, REAL_TIME_SIZE)
    for runtime in runtimes:
        found[runtime] = _candidates((*OURS, *THEIRS), small, runtime)
    for runtime in runtimes:
        height, width = REAL_TIME_SIZE
        found[f'{runtime}, {height}x{width}'] = _candidates(REAL_TIME, large, runtime)
    return found


def _candidates(names: Sequence[str], size: tuple[int, int], runtime: str) -> list[Candidate]:
    forms = (FUSED, REWRITTEN) if runtime == 'pytorch' else (FUSED,)
    return [_candidate(name, form, size, runtime) for form in forms for name in names]


def _candidate(name: str, form: str, size: Sequence[int], runtime: str = 'pytorch') -> Candidate:
    fusing = ('batchnorm',) if name in THEIRS else ('branches', 'batchnorm')
    settings: dict[str, Any] = dict(
        config=TRAINED[name],
        rewrites=list(fusing if form == FUSED else (*fusing, *MORE)),
        runtime=runtime,
        count_flops=form == FUSED,  # convs and linear layers can no longer be counted after more
        size=list(size),
    )
    return Candidate(f'{name}, {form}', f'{NETWORKS}:segmentor', settings)


def reference(candidate: Candidate) -> Candidate | None:
    """The same network fused, in PyTorch."""
    name = candidate.name.rpartition(', ')[0]
    fused = _candidate(name, FUSED, candidate.settings['size'])
    return replace(candidate, name=fused.name, settings=fused.settings)


def images_per_second(record: Record, name: str, runtime: str, form: str = FUSED) -> float | None:
    """Speed of a network of :data:`TRAINED` in a runtime; None if it was not measured."""
    measured = next(iter(OURS)) if name in SAME_WHEN_FUSED else name
    row = record.row(f'{measured}, {form}', runtime)
    return None if row is None else row.per_second


def at_camvid_size(record: Record) -> list[str]:
    """The groups of a record that are of CamVid's size, which are named as their runtime."""
    return [group for group in record.groups if ',' not in group]


def markdown(record: Record) -> str:
    """A table per runtime."""
    return sections(
        {
            runtime: row_table(
                ['network', 'parameters, M', 'G multiply-adds', 'images a second', 'spread',
                 f'speed, {BASE} = 1', 'argmax agreement'],
                rows,
                lambda row: [row.name, *([None] * 2 if row.failure else costs(row))],
                lambda row: _figures(record, row),
            )
            for runtime, rows in record.groups.items()
        }
    )  # fmt: skip


def costs(row: Row) -> list[str | None]:
    """Parameters in millions and multiply-adds in billions."""
    return [f'{row.info["parameters"] / 1e6:.2f}', number(row.info.get('flops'), 1, 1e9)]


def _figures(record: Record, row: Row) -> list[Any]:
    return [
        f'{row.per_second:.1f}',
        percent(row.spread),
        record.ratio(row.name, f'{BASE}, {FUSED}', row.group),
        percent(row.agreement, 3),
    ]


def plot(record: Record, path: Path) -> None:
    """Speed relative to fused PIDNet-S in the same runtime, at the size of CamVid's images."""
    names = [*OURS, *THEIRS]
    series: dict[str, list[float | None]] = {}
    for runtime in at_camvid_size(record):
        for form in (FUSED, REWRITTEN):
            speeds = [record.speed(f'{n}, {form}', f'{BASE}, {FUSED}', runtime) for n in names]
            if any(speeds):
                series[f'{runtime}, {form}'] = speeds
    bars(path, names, series, f'times as fast as fused {BASE}', TITLE)
