"""The record of a benchmark as JSON: every single time, the machine, versions and settings."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmseg_repvgg.analysis.time_in_turn import Ratio, paired_ratio
from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.benchmark.candidate import Row
from mmseg_repvgg.benchmark.protocol import Protocol
from mmseg_repvgg.package_versions import installed
from mmseg_repvgg.version import __version__

PACKAGES = ('torch', 'torchvision', 'numpy', 'timm', 'onnx', 'onnxruntime', 'openvino', 'MNN')
"""Packages whose versions are recorded, if installed, besides OpenMMLab's."""


@dataclass(frozen=True)
class Record:
    """One run of a benchmark."""

    benchmark: str
    command: str
    date: str  # UTC
    commit: str | None  # ends in -dirty if code or configs have uncommitted changes
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
            text = f'{path} is not a record of mmseg-repvgg benchmark ({error!r})'
            raise ValueError(text) from error

    @property
    def groups(self) -> dict[str, list[Row]]:
        """The rows by group."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.group, []).append(row)
        return found

    def row(self, name: str, group: str | None = None) -> Row | None:
        """The row of a candidate, or None if it has no figures."""
        found = (r for r in self.rows if r.name == name and group in (None, r.group))
        return next((row for row in found if row.seconds), None)

    def ratio(
        self,
        name: str,
        reference: str,
        group: str | None = None,
        work: Callable[[Row], float] = lambda row: row.examples,
    ) -> Ratio | None:
        """Speed relative to a reference; None if one of them has no figures.

        Args:
            name: Name of the candidate.
            reference: Name of the candidate that it is compared with.
            group: The group of both.
            work: Returns what a row does in a call; the speed is work per second.
        """
        row, base = self.row(name, group), self.row(reference, group)
        if row is None or base is None:
            return None
        if row is base:
            return Ratio(1, 1, 1)
        return paired_ratio(base.seconds, row.seconds, work(row) / work(base))

    def speed(self, *names: Any, **options: Any) -> float | None:
        """The value of :meth:`ratio`."""
        ratio = self.ratio(*names, **options)
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
    groups = [group for record in records for group in record.groups]
    if len(set(groups)) < len(groups):
        raise ValueError(f'each group must be in one record only, not {sorted(groups)}')
    return replace(
        first,
        command='`, `'.join(record.command for record in records),
        date=max(record.date for record in records),
        rows=[row for record in records for row in record.rows],
    )


def make_record(benchmark: str, rows: Sequence[Row], protocol: Protocol) -> Record:
    """Collect rows with the machine, versions and settings that they depend on."""
    return Record(
        benchmark=benchmark,
        command=shlex.join(['mmseg-repvgg', 'benchmark', *sys.argv[1:]]),
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        machine=describe_machine(),
        protocol=asdict(protocol),
        rows=list(rows),
        **describe_code(),
    )


def describe_code() -> dict[str, Any]:
    """The ``commit`` of the code and the ``versions`` of the packages."""
    own = {'mmseg_repvgg': __version__, 'python': platform.python_version()}
    return dict(commit=_commit(), versions={**own, **_versions()})


def _commit() -> str | None:
    """The commit of the checkout that this file belongs to; None outside one."""

    def git(*arguments: str) -> str:
        command = ['git', *arguments]
        folder = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git('ls-files', '--error-unmatch', __file__)  # fails in an environment inside a checkout
        changed = git('status', '--porcelain', '--', 'mmseg_repvgg', 'configs')
        return git('rev-parse', 'HEAD') + ('-dirty' if changed else '')
    except (OSError, subprocess.CalledProcessError):
        return None


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory, GPU and system."""
    import torch

    memory = None
    if hasattr(os, 'sysconf'):  # not on Windows
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return dict(
        processor=_processor(),
        instructions=torch.backends.cpu.get_cpu_capability(),  # such as AVX2
        cores=os.cpu_count(),
        memory_bytes=memory,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        system=platform.platform(),
    )


def _processor() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()


def _versions() -> dict[str, str]:
    found = {name: v for one in installed().values() for name, v in one.items()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
