"""The benchmarks: what they measure, what they quote, and a quick run of each."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from mmseg_repvgg.benchmark import dropin, figure3, networks, table1, table4, table6, table8
from mmseg_repvgg.benchmark.candidate import Row
from mmseg_repvgg.benchmark.record import Record, joined
from mmseg_repvgg.benchmark.run import SUITES, run_benchmark, write

ROOT = Path(__file__).resolve().parents[2]
RECORDS = [
    path.relative_to(ROOT / 'benchmarks')
    for path in sorted((ROOT / 'benchmarks').rglob('*.json'))
    if path.parent.name not in ('learning_rate', 'camvid')  # records of trainings
]


def row(name, seconds, group='pytorch', examples=1, **more):
    values = dict(settings={}, info={}, peak_memory=None, agreement=None, failure=None)
    return Row(name, group, **{**values, 'seconds': seconds, 'examples': examples, **more})


def record(rows):
    machine = dict(processor='p', cores=2, gpu=None)
    protocol = dict(threads=2, warm_up=1, rounds=2)
    return Record('x', 'c', 'd', None, machine, {}, protocol, rows)


def test_quoted_figures_are_the_papers():
    # section 4.1: A0 is 33 % faster than ResNet-18, A1 64 % than ResNet-34, A2 83 % than ResNet-50
    speed = {name: paper.speed for name, paper in table4.PAPER.items()}
    for ours, base, percent in (
        ('RepVGG-A0', 'ResNet-18', 33),
        ('RepVGG-A1', 'ResNet-34', 64),
        ('RepVGG-A2', 'ResNet-50', 83),
        ('RepVGG-B1g4', 'ResNet-101', 101),
        ('RepVGG-B3', 'RegNetX-12GF', 31),
        ('RepVGG-A2', 'EfficientNet-B0', 59),
    ):
        assert int(100 * (speed[ours] / speed[base] - 1)) in (percent, percent - 1)
    # section 4.3: B1g2-fast runs 62 % faster than ResNet-101 with 0.37 more mIoU
    fast, base = table8.PAPER['RepVGG-B1g2-fast'], table8.PAPER['ResNet-101']
    assert int(100 * (fast.speed / base.speed - 1)) == 62
    assert fast.miou - base.miou == pytest.approx(0.37)
    # Table 1's FLOPs and milliseconds give its TFLOPS
    for kernel, (flops, ms) in {1: (420.9, 84.5), 3: (3788.1, 198.8), 7: (20624.4, 4394.3)}.items():
        assert table1.PAPER[kernel] == pytest.approx(2 * flops / ms, abs=0.01)
    assert table6.PAPER['3x3'][1] == pytest.approx(75.14 - 2.75)  # section 4.2


def test_table_8_measures_what_it_says():
    groups = table8.groups(['pytorch', 'mnn'], quick=False)
    parts = [f'{runtime}, {p}' for runtime in ('pytorch', 'mnn') for p in ('B2', 'B1g2', 'fast')]
    assert list(groups) == [*parts, 'across runtimes']
    assert all('ResNet-101' in [s.name for s in groups[group]] for group in parts)
    both = [candidate for part in parts[3:] for candidate in groups[part]]
    candidates = {candidate.name: candidate.settings for candidate in both}
    assert len(candidates) == 2 * 6 + 1
    assert candidates['RepVGG-B2']['rewrites'] == ['branches', 'batchnorm']
    assert candidates['RepVGG-B2, rewritten']['rewrites'][2:] == ['dilation', 'pyramid']
    assert candidates['ResNet-50']['rewrites'] == ['batchnorm']
    assert all((ROOT / 'configs' / s['config']).is_file() for s in candidates.values())
    in_pytorch = {candidate.name: candidate.settings for candidate in groups['pytorch, B2']}
    assert in_pytorch['RepVGG-B2, rewritten']['rewrites'][-1] == 'winograd'


def test_tables_by_hand():
    rows = [
        row('ResNet-101', [2.0, 4.0], agreement=1.0, peak_memory=2 << 30),
        row('RepVGG-B2', [4.0, 16.0]),  # in the rounds 0.5 and 0.25 times as fast: t(1) is 12.7
        row('RepVGG-B2, rewritten', [], failure='too large'),
    ]
    lines = table8.markdown(record(rows)).splitlines()
    assert '| ResNet-101 | 3.00 | 67 % | 1 | 1.00 | 100.000 % | 2.00 GiB |' in lines
    assert '| RepVGG-B2 | 10.00 | 120 % | 0.35 (0.00 to 28.90, undecided) | 0.67 | - | - |' in lines
    assert '| RepVGG-B2, rewritten | not measured: too large | - | - | - | - | - |' in lines
    first, second = dict(examples=4, group='pytorch, 1'), dict(examples=4, group='pytorch, 2')
    parts = [
        *(row('timm/repvgg_a0', [1.0], **first), row('ResNet-50', [2.0], **first)),
        *(row('RepVGG-A0', [4.0], **second), row('ResNet-50', [4.0], **second)),
    ]
    assert table4.markdown(record(parts)).splitlines()[4:] == [  # each beside its own ResNet-50
        '| RepVGG-A0 | 72.41 | 1.00 | 0 % | 1.00 (one round) | 4.53 |',
        '| ResNet-50 | 76.31 | 2.00 | 0 % | 1 | 1.00 |',
        '| timm/repvgg_a0 | 72.41 | 4.00 | 0 % | 2.00 (one round) | 4.53 |',
    ]
    conv = dict(info=dict(flops=int(1e9)))
    text = table1.markdown(record([row('1x1', [1.0], **conv), row('3x3', [0.5], **conv)]))
    assert '| pytorch | 3x3 | 1.0 | 500.0 | 4 | 2.00 (one round) | 3.83 |' in text
    memory = dict(info=dict(map_bytes=100 << 20), peak_memory=200 << 20)
    text = figure3.markdown(record([row('plain', [1.0], **memory)]))
    assert '| plain | 200 MiB | 2.00 | 1 |' in text


def test_every_classifier_is_measured_once_beside_a_resnet_50():
    groups = table4.groups(['pytorch', 'mnn'], quick=False)
    assert all(sum(s.name == 'ResNet-50' for s in members) == 1 for members in groups.values())
    for runtime, names in (('pytorch', {*table4.PAPER, *table4.ELSEWHERE}), ('mnn', table4.PAPER)):
        members = [s.name for g, part in groups.items() if g.startswith(runtime) for s in part]
        others = [n for n in members if ', by Winograd' not in n and n != 'ResNet-50']
        assert sorted([*others, 'ResNet-50']) == sorted(names)


def test_agreement_in_table8_is_with_the_network_fused_in_pytorch():
    groups = table8.groups(['pytorch', 'mnn'], quick=False)
    fused = {
        candidate.name: candidate
        for part in table8.IN_TURN
        for candidate in groups[f'pytorch, {part}']
    }
    for members in groups.values():
        for candidate in members:
            reference = table8.reference(candidate)
            expected = fused.get(candidate.name.split(', ')[0])
            assert reference == (None if candidate.name == table8.USUAL else expected)


def test_dropin_measures_what_it_says():
    groups = dropin.groups(['pytorch', 'mnn'], quick=False)
    assert list(groups) == [*dropin.CURATED, 'real time, pytorch', 'real time, mnn']
    for members in groups.values():
        assert all(dropin.reference(candidate) in members for candidate in members)
        assert {tuple(candidate.settings['size']) for candidate in members} == {(512, 1024)}
    candidates = {s.name: s.settings for members in groups.values() for s in members}
    assert {networks._config(s['config']).is_file() for s in candidates.values()} == {True}
    assert candidates['FCN A1, as trained']['rewrites'] == []
    assert candidates['FCN ResNet-50 of mmseg, fused']['rewrites'] == ['batchnorm']
    # what ours get, theirs get, too
    ours, theirs = (candidates[f'{n}, rewritten']['rewrites'] for n in ('FPN-64 A0', 'PIDNet-S'))
    assert ours == ['branches', *theirs] and 'winograd' in theirs


def test_the_dropin_table_by_hand():
    more = dict(
        info=dict(parameters=2_500_000, flops=3.21e9),
        group='real time, pytorch',
        settings=dict(runtime='pytorch'),
    )
    rows = [
        row('PIDNet-S, fused', [0.1, 0.1], **more),
        row('FPN-64 A0, fused', [0.2, 0.4], agreement=0.5, **more),
        row('FPN-64 A0, rewritten', [], failure='too large', **more),
        row('FCN A1, as trained', [2.0], **dict(more, group='FCN A1')),
        row('FCN A1, fused', [1.0], **dict(more, group='FCN A1')),
        row('FCN ResNet-50 of mmseg, fused', [4.0], **dict(more, group='FCN A1')),
    ]
    text = dropin.markdown(record(rows))
    lines = text.splitlines()
    assert '| FCN A1 | 2.50 | 3.2 | 2000 | 1000 | - | 4000 |' in lines
    assert '| FPN-64 A0 | 2.50 | 3.2 | - | 300 | - | - |' in lines
    assert '**real time, pytorch**' in lines
    assert '| FCN A1, fused | 2.50 | 3.2 | 1000 | 0 % | 4.00 (one round) | - | - |' in lines
    assert '| PIDNet-S, fused | 2.50 | 3.2 | 100 | 0 % | 1 | - | - |' in lines
    ratio = '0.35 (0.00 to 28.90, undecided)'
    assert f'| FPN-64 A0, fused | 2.50 | 3.2 | 300 | 67 % | {ratio} | 50.000 % | - |' in lines
    failed = '| FPN-64 A0, rewritten | - | - | not measured: too large | - | - | - | - |'
    assert failed in lines


@pytest.mark.parametrize('path', RECORDS, ids=str)
def test_kept_records_are_read_and_give_their_pages(path, tmp_path):
    record = Record.read(ROOT / 'benchmarks' / path)
    write(record, tmp_path)
    page = (tmp_path / path.with_suffix('.md').name).read_text(encoding='utf-8')
    assert not [line for line in page.splitlines() if line.startswith('| ') and 'None' in line]
    if 'block' in record.protocol:  # the pages of older records were written by older code
        kept = (ROOT / 'benchmarks' / path).with_suffix('.md')
        assert page == kept.read_text(encoding='utf-8')
    assert json.loads((tmp_path / path.name).read_text()) == {
        **json.loads((ROOT / 'benchmarks' / path).read_text()),
        'rows': [dataclasses.asdict(row) for row in record.rows],
    }


def test_records_of_parts_are_joined():
    one, two = (record([row('a', [1.0], group=group)]) for group in ('g', 'h'))
    both = joined([one, two])
    assert [r.group for r in both.rows] == ['g', 'h']
    assert both.command == 'c`, `c'
    with pytest.raises(ValueError, match='must be in one record only'):
        joined([one, one])
    with pytest.raises(ValueError, match='different commit cannot be joined'):
        joined([one, dataclasses.replace(two, commit='other')])


def test_wrong_names_are_refused(tmp_path):
    for arguments, text in (
        (dict(name='table9'), "unknown benchmark 'table9'; choose from table8"),
        (dict(name='table1', runtimes=['tvm']), "unknown runtime 'tvm'; choose from pytorch"),
        (dict(name='table1', groups=['cudnn']), r"groups=\['cudnn'\] are not known"),
        (
            dict(name='table1', only=['9x9']),
            r"candidates=\['9x9'\] are not known; choose from 1x1; 3x3",
        ),
    ):
        with pytest.raises(ValueError, match=text):
            run_benchmark(out=tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        pytest.param('figure3', [], marks=pytest.mark.slow),
        pytest.param('table1', ['--runtimes', 'pytorch', 'mnn'], marks=pytest.mark.slow),
        pytest.param('training', [], marks=pytest.mark.slow),
        pytest.param('table6', [], marks=pytest.mark.slow),
        pytest.param('table4', ['--runtimes', 'pytorch', 'mnn'], marks=pytest.mark.slow),
        pytest.param('dropin', ['--runtimes', 'pytorch', 'mnn'], marks=pytest.mark.slow),
        pytest.param('table8', ['--runtimes', 'pytorch', 'mnn'], marks=pytest.mark.slow),
    ],
)
def test_a_quick_run_measures_everything_and_writes_three_files(tmp_path, name, options):
    done = subprocess.run(
        [sys.executable, ROOT / 'tools' / 'benchmark.py', name, '--quick', '--out', 'out']
        + ['--threads', '1', *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = Record.read(tmp_path / 'out' / f'{name}.json')
    assert not [row.failure for row in found.rows if row.failure]
    assert all(len(row.seconds) == 1 for row in found.rows)
    if name in ('table8', 'dropin'):
        assert all(row.agreement > 0.99 for row in found.rows)
    text = (tmp_path / 'out' / f'{name}.md').read_text()
    assert text.startswith(f'# {SUITES[name].TITLE}\n')
    assert len(re.findall(r'^\| ', text, re.M)) >= len(found.rows)
    assert cv2.imread(str(tmp_path / 'out' / f'{name}.png')).shape[0] > 100
