"""The record of a benchmark as JSON: every single time, the machine, versions and settings."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmseg_repvgg.analysis.time_in_turn import Ratio, paired_ratio
from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.benchmark.candidate import Outcome
from mmseg_repvgg.benchmark.protocol import Protocol
from mmseg_repvgg.version import __version__

PACKAGES = (
    'torch', 'torchvision', 'numpy', 'mmsegmentation', 'mmengine', 'mmcv-lite', 'mmpretrain',
    'timm', 'onnx', 'onnxruntime', 'openvino', 'MNN',
)  # fmt: skip
"""Packages whose versions are recorded, if installed."""


@dataclass(frozen=True)
class Row:
    """A candidate's figures, as in the JSON file."""

    name: str
    group: str  # the candidates that were measured in turn
    settings: dict[str, Any]
    examples: int
    seconds: list[float]
    info: dict[str, Any]
    peak_memory: int | None  # bytes
    agreement: float | None  # share of outputs with the same class as in PyTorch
    failure: str | None
    calls: int = 1  # per round; ``seconds`` are means over them

    @property
    def median(self) -> float:
        """Seconds a call."""
        return statistics.median(self.seconds)

    @property
    def per_second(self) -> float:
        """Examples a second."""
        return self.examples / self.median

    @property
    def spread(self) -> float:
        """Largest minus smallest time, as a share of the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Record:
    """One run of a benchmark."""

    benchmark: str
    command: str
    date: str  # UTC
    commit: str | None  # of the code; ends in -dirty if there are uncommitted changes
    machine: dict[str, Any]
    versions: dict[str, str]
    protocol: dict[str, Any]
    rows: list[Row]

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            OSError: If it cannot be written.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: If the file is not a record.
        """
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
            rows = [Row(**row) for row in values.pop('rows')]
            return cls(**values, rows=rows)
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f'{path} is not a record of tools/benchmark.py ({error!r})') from error

    def row(self, name: str, group: str | None = None) -> Row | None:
        """The row of a candidate, or None if it has no figures."""
        found = (r for r in self.rows if r.name == name and group in (None, r.group))
        return next((row for row in found if row.seconds), None)

    def ratio(self, name: str, reference: str, group: str | None = None) -> Ratio | None:
        """Speed relative to a reference; None if one of them has no figures."""
        row, base = self.row(name, group), self.row(reference, group)
        if row is None or base is None:
            return None
        if row is base:
            return Ratio(1, 1, 1)
        return paired_ratio(base.seconds, row.seconds, row.examples / base.examples)

    def speed(self, name: str, reference: str, group: str | None = None) -> float | None:
        """The value of :meth:`ratio`."""
        ratio = self.ratio(name, reference, group)
        return ratio.value if ratio else None


def joined(records: Sequence[Record]) -> Record:
    """Join the records of a benchmark that was measured part by part.

    Raises:
        ValueError: If benchmark, commit, machine, versions or protocol differ, or if two records
            have the same group.
    """
    first = records[0]
    for name in ('benchmark', 'commit', 'machine', 'versions', 'protocol'):
        found = {json.dumps(getattr(record, name), sort_keys=True) for record in records}
        if len(found) > 1:
            raise ValueError(
                f'records with different {name} cannot be joined: {"; ".join(sorted(found))}. '
                'Measure all parts with one commit and the same options'
            )
    groups = [group for record in records for group in {row.group for row in record.rows}]
    if len(set(groups)) < len(groups):
        raise ValueError(f'each group must be in one record only, not {sorted(groups)}')
    return replace(
        first,
        command='`, `'.join(record.command for record in records),
        date=max(record.date for record in records),
        rows=[row for record in records for row in record.rows],
    )


def make_record(
    benchmark: str,
    outcomes: dict[str, list[Outcome]],
    agreement: Callable[[Outcome], float | None],
    protocol: Protocol,
) -> Record:
    """Collect outcomes with the machine, versions and settings that they depend on.

    Args:
        benchmark: Name of the benchmark.
        outcomes: Outcomes by group.
        agreement: Gives the share (0 to 1) of an outcome's output that equals its reference's.
        protocol: How they were measured.
    """
    rows = [
        _row(group, outcome, agreement(outcome))
        for group, members in outcomes.items()
        for outcome in members
    ]
    return Record(
        benchmark=benchmark,
        command=shlex.join(['python', 'tools/benchmark.py', *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        commit=_commit(),
        machine=_machine(),
        versions={'mmseg_repvgg': __version__, 'python': platform.python_version(), **_versions()},
        protocol=asdict(protocol),
        rows=rows,
    )


def _row(group: str, outcome: Outcome, agreement: float | None) -> Row:
    return Row(
        name=outcome.candidate.name,
        group=group,
        settings=outcome.candidate.settings,
        examples=outcome.candidate.examples,
        seconds=outcome.seconds,
        calls=outcome.calls,
        info=outcome.info,
        peak_memory=outcome.peak_memory,
        agreement=agreement,
        failure=outcome.failure,
    )


def provenance(record: Record) -> str:
    """The text under a table: where its figures come from."""
    machine, protocol = record.machine, record.protocol
    precision = 'fp32 unless a group is named otherwise' if machine['gpu'] else 'fp32'
    blocks = f' of at least {protocol["block"]:g} s' if 'block' in protocol else ''
    versions = ', '.join(f'{name} {number}' for name, number in record.versions.items())
    return (
        f'Measured by `{record.command}` on {record.date} (commit {record.commit}): '
        f'{machine["processor"]}, {machine["cores"]} cores, {machine["gpu"] or "no GPU"}; '
        f'{protocol["threads"]} threads, {precision}, {protocol["warm_up"]} warm-up and '
        f'{protocol["rounds"]} timed rounds{blocks}, the models of a group in turn. Times are '
        'medians over the rounds; a ratio is the geometric mean of the ratios of every round, with '
        f'its 95 % confidence interval: undecided where that includes 1. {versions}.'
    )


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ['git', 'describe', '--always', '--abbrev=40', '--dirty', '--match='],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip() or None


def _machine() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return dict(
        processor=_processor(), cores=os.cpu_count(), memory_bytes=memory, gpu=gpu,
        system=platform.platform(),
    )  # fmt: skip


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
