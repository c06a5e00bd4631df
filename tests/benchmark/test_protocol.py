"""Measuring in turn: times, ratios, memory; and what fails is reported, not dropped."""

import subprocess

import pytest
import torch

from mmseg_repvgg.benchmark import record as record_module
from mmseg_repvgg.benchmark.candidate import Candidate
from mmseg_repvgg.benchmark.protocol import Protocol, measure
from mmseg_repvgg.benchmark.record import Record, make_record
from mmseg_repvgg.benchmark.run import compare_outputs

FAKES = 'tests.benchmark.fakes'


@pytest.mark.slow
def test_times_memory_and_failures():
    candidates = [
        Candidate('half', f'{FAKES}:sleeper', dict(seconds=0.12, note='x')),
        Candidate('one', f'{FAKES}:sleeper', dict(seconds=0.24, label=3), examples=4),
        Candidate('large', f'{FAKES}:hungry', dict(megabytes=300)),
        Candidate('small', f'{FAKES}:hungry', dict(megabytes=1)),
        Candidate('unbuilt', f'{FAKES}:failing', dict(when='building')),
        Candidate('broken', f'{FAKES}:failing', dict(when='running')),
        Candidate('killed', f'{FAKES}:failing', dict(when='killed')),
        Candidate('hanging', f'{FAKES}:failing', dict(when='hanging')),
    ]
    protocol = Protocol(rounds=3, warm_up=2, time_limit=15, pause=0, block=0.2)
    lines: list[str] = []
    outcomes = measure(candidates, protocol, lines.append)
    compare_outputs(outcomes, lambda candidate: candidates[1], {}, protocol)
    record = make_record('fake', [outcome.row for outcome in outcomes], protocol)
    assert [row.name for row in record.rows] == [candidate.name for candidate in candidates]
    half, one = record.row('half'), record.row('one')
    assert half is not None
    assert one is not None
    assert 0.12 <= half.median < 0.16
    assert 0.24 <= one.median < 0.29
    assert len(half.seconds) == 3
    assert half.info == {'note': 'x'}
    assert one.per_second == pytest.approx(4 / one.median)
    ratio = record.ratio('half', 'one')
    assert ratio.value == pytest.approx(2 / 4, rel=0.2)  # one has 4 examples
    assert ratio.low <= ratio.value <= ratio.high < 1
    assert (half.calls, one.calls) == (2, 1)  # as many as a block of 0.2 s takes
    assert (half.agreement, one.agreement) == (pytest.approx(2 / 3), 1)
    large, small = record.row('large'), record.row('small')
    assert large is not None
    assert small is not None
    assert 295 << 20 < large.peak_memory - small.peak_memory < 310 << 20
    failures = {row.name: row.failure for row in record.rows if row.failure}
    assert set(failures) == {'unbuilt', 'broken', 'killed', 'hanging'}
    assert failures['unbuilt'] == 'no such luck (fakes.py:22)'
    assert failures['broken'] == 'no such luck (fakes.py:22)'
    assert 'ended with code -9, probably out of memory' in failures['killed']
    assert failures['hanging'] == 'not done within 15 s'
    assert all(not row.seconds for row in record.rows if row.failure)
    assert record.ratio('broken', 'one') is None
    assert lines[-1] == 'round 3 of 3'


@pytest.mark.slow
def test_a_reference_that_was_not_measured_is_run_once():
    half, one = (
        Candidate(name, f'{FAKES}:sleeper', dict(seconds=seconds, label=label))
        for name, seconds, label in (('half', 0.01, 2), ('one', 0.02, 3))
    )
    protocol, lines = Protocol(rounds=2), []
    outcomes = measure([half, Candidate('unbuilt', f'{FAKES}:failing', {})], protocol)
    outputs: dict = {}
    compare_outputs(outcomes, lambda candidate: None, outputs, protocol, lines.append)
    assert (lines, outcomes[0].row.agreement) == ([], None)
    for _ in range(2):
        compare_outputs(outcomes, lambda candidate: one, outputs, protocol, lines.append)
    assert lines == ['one, for comparison: built', 'round 1 of 1']
    assert outcomes[0].row.agreement == pytest.approx(2 / 3)
    assert outcomes[1].row.agreement is None


def test_a_record_survives_its_file(tmp_path, family):
    outcomes = measure(
        [Candidate('a', f'{FAKES}:sleeper', dict(seconds=0.01))], Protocol(rounds=1, warm_up=0)
    )
    record = make_record('fake', [outcomes[0].row], Protocol(rounds=1))
    record.write(tmp_path / 'deep' / 'fake.json')
    assert Record.read(tmp_path / 'deep' / 'fake.json') == record
    assert record.machine['cores'] >= 1
    assert record.machine['instructions'] == torch.backends.cpu.get_cpu_capability()
    assert record.versions['torch']
    # the family that is imported, and not another one in the same environment
    names = dict(openmmlab='mmsegmentation', onedl='onedl-mmsegmentation')
    assert [f for f, name in names.items() if name in record.versions] == [family]
    assert len(record.commit or 'x' * 40) >= 40
    (tmp_path / 'other.json').write_text('{"rows": 3}')
    with pytest.raises(ValueError, match='is not a record of mmseg-repvgg benchmark'):
        Record.read(tmp_path / 'other.json')


@pytest.mark.parametrize(
    ('make', 'text'),
    [
        (lambda: Protocol(rounds=0), 'rounds and threads must be at least 1'),
        (lambda: Protocol(time_limit=0), 'time_limit positive'),
        (lambda: measure([], Protocol()), 'need candidates with names that differ'),
        (
            lambda: measure([Candidate('a', 'b:c'), Candidate('a', 'b:c')], Protocol()),
            'need candidates with names that differ',
        ),
    ],
)
def test_wrong_arguments(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_a_record_names_the_commit_of_the_code_only(tmp_path, monkeypatch):
    """Not that of a project in whose folder the package is installed; records do not count."""
    code, other = tmp_path / 'mmseg_repvgg/benchmark/record.py', tmp_path / 'benchmarks/x.json'

    def git(*arguments):
        name = ['-c', 'user.name=a', '-c', 'user.email=a@b']
        done = subprocess.run(['git', *name, *arguments], cwd=tmp_path, check=True, text=True,
                              capture_output=True)  # fmt: skip
        return done.stdout.strip()

    for file in (code, other):
        file.parent.mkdir(parents=True)
        file.write_text('a')
    monkeypatch.setattr(record_module, '__file__', str(code))
    git('init', '-q')
    git('add', 'benchmarks')
    git('commit', '-qm', 'a')
    assert record_module._commit() is None
    git('add', '.')
    git('commit', '-qm', 'b')
    other.write_text('b')
    assert record_module._commit() == git('rev-parse', 'HEAD')
    code.write_text('b')
    assert record_module._commit() == git('rev-parse', 'HEAD') + '-dirty'
