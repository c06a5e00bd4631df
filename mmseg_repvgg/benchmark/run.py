"""Run a benchmark and write JSON, Markdown and PNG (tools/benchmark.py)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.benchmark import camvid, dropin, figure3, table1, table4, table6, table8, training
from mmseg_repvgg.benchmark.candidate import Candidate, Outcome, Row
from mmseg_repvgg.benchmark.forward import EXECUTIONS
from mmseg_repvgg.benchmark.page import provenance
from mmseg_repvgg.benchmark.protocol import Protocol, measure
from mmseg_repvgg.benchmark.record import Record, make_record

SUITES: dict[str, ModuleType] = {
    'table8': table8,
    'table4': table4,
    'table1': table1,
    'table6': table6,
    'dropin': dropin,
    'camvid': camvid,
    'figure3': figure3,
    'training': training,
}
"""The benchmarks by name. Their modules hold:

- ``TITLE``;
- ``groups(runtimes, quick)``: the candidates by group; those of a group are measured in turn;
- ``markdown(record)`` and ``plot(record, path)``: tables and picture;
- ``reference(candidate)``, if outputs are to be compared: the candidate that gives the expected
  output, which is run once if it is in no group; or None.
"""


def run_benchmark(
    name: str,
    out: Path,
    runtimes: Sequence[str] | None = None,
    protocol: Protocol | None = None,
    quick: bool = False,
    groups: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> Record:
    """Measure a benchmark and write ``<out>/<name>.json``, ``.md`` and ``.png``.

    Args:
        name: Key of :data:`SUITES`.
        out: The folder.
        runtimes: Keys of :data:`EXECUTIONS`; by default all that can run here.
        protocol: How to measure; by default with one thread per CPU.
        quick: Use small networks and one round, to test the benchmark; the figures mean nothing.
        groups: Only these groups.
        only: Only candidates of these names.
        say: Called with each line of progress.

    Returns:
        The record that was written.

    Raises:
        ValueError: On an unknown name, runtime, group or candidate.
        OSError: If ``out`` cannot be written.
    """
    if name not in SUITES:
        raise ValueError(f'unknown benchmark {name!r}; choose from {", ".join(SUITES)}')
    protocol = protocol or Protocol(threads=os.cpu_count() or 1)
    if quick:
        protocol = replace(protocol, rounds=1, warm_up=1, block=0, time_limit=120)
    suite = SUITES[name]
    chosen = _choose(suite.groups(_select_runtimes(runtimes), quick), groups, only)
    rows: list[Row] = []
    outputs: dict[str, np.ndarray | None] = {}
    for group, candidates in chosen.items():
        say(f'{name}, {group}: {len(candidates)} candidates')
        outcomes = measure(candidates, protocol, say, group)
        if hasattr(suite, 'reference'):
            compare_outputs(outcomes, suite.reference, outputs, protocol, say)
        rows += [outcome.row for outcome in outcomes]
        record = make_record(name, rows, protocol)
        write(record, out)  # after every group: a long run may be interrupted
    return record


def compare_outputs(
    outcomes: Sequence[Outcome],
    reference: Callable[[Candidate], Candidate | None],
    outputs: dict[str, np.ndarray | None],
    protocol: Protocol,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Set the agreement of outcomes with their references.

    Args:
        outcomes: Those of a group.
        reference: Returns the candidate that gives the expected output, or None.
        outputs: All outputs so far, by what was built; those of the group are added, and those of
            references that have not run.
        protocol: Used without its rounds and warm-up.
        say: Called with each line of progress.
    """
    outputs |= {_key(o.candidate): o.output for o in outcomes if not o.row.failure}
    for outcome in outcomes:
        wanted = reference(outcome.candidate)
        if wanted is None or outcome.output is None:
            continue
        key = _key(wanted)
        if key not in outputs:  # one at a time, to save memory; nothing is timed
            wanted = replace(wanted, name=f'{wanted.name}, for comparison')
            outputs[key] = measure([wanted], replace(protocol, rounds=1, warm_up=0), say)[0].output
        if outputs[key] is not None:
            outcome.row.agreement = float(np.mean(outcome.output == outputs[key]))


def _key(candidate: Candidate) -> str:
    """Identify what is built, whatever the candidate's name."""
    return json.dumps([candidate.builder, candidate.settings], sort_keys=True)


def write(record: Record, out: Path) -> None:
    """Write a record, its tables and its picture.

    Raises:
        OSError: If a file cannot be written.
    """
    suite = SUITES[record.benchmark]
    record.write(out / f'{record.benchmark}.json')
    with atomic_file(out / f'{record.benchmark}.md') as temporary:
        text = f'# {suite.TITLE}\n\n{suite.markdown(record)}\n\n{provenance(record)}\n'
        temporary.write_text(text, encoding='utf-8')
    suite.plot(record, out / f'{record.benchmark}.png')


def _choose(
    candidates: dict[str, list[Candidate]], groups: Sequence[str] | None, only: Sequence[str] | None
) -> dict[str, list[Candidate]]:
    """Keep the named groups, and in them the named candidates."""
    names = {candidate.name: None for members in candidates.values() for candidate in members}
    for wanted, known, what in ((groups, candidates, 'groups'), (only, names, 'candidates')):
        unknown = sorted(set(wanted or ()) - set(known))
        if unknown:
            raise ValueError(f'{what}={unknown} are not known; choose from {"; ".join(known)}')
    kept = {
        group: [candidate for candidate in members if not only or candidate.name in only]
        for group, members in candidates.items()
        if not groups or group in groups
    }
    return {group: members for group, members in kept.items() if members}


def _select_runtimes(runtimes: Sequence[str] | None) -> list[str]:
    for runtime in runtimes or ():
        if runtime not in EXECUTIONS:
            raise ValueError(f'unknown runtime {runtime!r}; choose from {", ".join(EXECUTIONS)}')
        execution = EXECUTIONS[runtime]
        if not execution.is_possible:
            gpu = ' with CUDA support, and a GPU' if execution.needs_gpu else ''
            raise ValueError(
                f'runtime {runtime!r} is not available: it needs {execution.runtime}{gpu}. Run pip '
                'install "mmseg-repvgg[deploy]" (python -m mmseg_repvgg.doctor shows what works)'
            )
    return list(runtimes or (n for n, execution in EXECUTIONS.items() if execution.is_possible))
