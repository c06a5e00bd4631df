"""Trains the networks of ``configs/camvid`` on equal terms, one at a time.

Each training is a command of its own, ``mmseg-repvgg train CONFIG``, and leaves a JSON record. A
training that has one is not repeated; one that was interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mmseg_repvgg.atomic_files import atomic_file, make_folder
from mmseg_repvgg.benchmark.camvid import NETWORK_CONFIGS, TRAINED
from mmseg_repvgg.benchmark.record import describe_code, describe_machine
from mmseg_repvgg.checkpoint.writing import publish_weights
from mmseg_repvgg.plots.curves import read_training

WEIGHTS = 'weights'
"""Folder of the weights that :func:`train_all` writes, one file for each training."""
TEST = 'test'
"""Folder in a work folder for the test of a training that was stopped in its last validation."""


@dataclass(frozen=True)
class Training:
    """The record of a training."""

    name: str  # key of TRAINED
    config: str
    seed: int
    command: str
    miou: float  # percent, of val after the last iteration
    pixel_accuracy: float  # percent
    best_miou: float
    iterations: int
    images: int  # iterations times the batch size
    seconds: float | None  # of the iterations, without validations; None if they were not logged
    date: str  # UTC, of the end
    commit: str | None
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    losses: list[list[float]] = field(default_factory=list)  # iteration and loss, as logged
    validations: list[list[float]] = field(default_factory=list)  # iteration and mIoU, percent
    weights: dict[str, Any] = field(default_factory=dict)  # file in OUT/weights, bytes, sha256

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> Training:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: If the file is not a record.
        """
        try:
            return cls(**json.loads(path.read_text(encoding='utf-8')))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f'{path} is not a record of mmseg-repvgg train-camvid ({error}); delete it to '
                'train that network again'
            ) from error


def train_all(
    out: Path,
    names: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    options: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> list[str]:
    """Train networks one after the other, all with the first seed before the second.

    Args:
        out: Folder of the records, and of the work folders in ``out/work``.
        names: Keys of :data:`TRAINED`; by default the networks, not the recipes.
        seeds: A training for each.
        options: ``key=value`` of ``--cfg-options`` for all trainings.
        say: Called with each line of progress.

    Returns:
        A line for each training that failed; the others go on.

    Raises:
        ValueError: If a name is unknown, or an existing record has other options.
        OSError: If ``out`` cannot be written.
    """
    unknown = sorted(set(names or ()) - set(TRAINED))
    if unknown:
        raise ValueError(f'unknown networks {unknown}; choose from {"; ".join(TRAINED)}')
    make_folder(out)
    failures = []
    for seed in seeds:
        for name in names or NETWORK_CONFIGS:
            command = _command(out, name, seed, options)
            path = out / f'{_stem(name)}_seed{seed}.json'
            if path.is_file():
                _check_same(path, command)
                say(f'{name}, seed {seed}: {path} is there')
                continue
            say(f'{name}, seed {seed}: {command}')
            failure = _train(name, seed, command, _work_dir(out, name, seed), path)
            if failure:
                failures.append(f'{name}, seed {seed}: {failure}')
                say(failures[-1])
    return failures


def _stem(name: str) -> str:
    return Path(TRAINED[name]).stem


def _work_dir(out: Path, name: str, seed: int) -> Path:
    return out / 'work' / f'{_stem(name)}_seed{seed}'


def _command(out: Path, name: str, seed: int, options: Sequence[str]) -> str:
    work_dir = _work_dir(out, name, seed).as_posix()
    words = ['mmseg-repvgg', 'train', TRAINED[name], '--work-dir', work_dir, '--resume']
    return shlex.join([*words, '--cfg-options', f'randomness.seed={seed}', *options])


def _check_same(path: Path, command: str) -> None:
    found = Training.read(path).command
    if found != command:
        raise ValueError(
            f'{path} was made by another command, {found}. Give the same options, or another '
            'folder: trainings of different lengths cannot be compared'
        )


def _train(name: str, seed: int, command: str, work_dir: Path, path: Path) -> str:
    """Run one training and write its record; return why it failed, or ''."""
    code = run_command(command)
    if code:
        return f'the training ended with exit code {code}; its log is in {work_dir}'
    iterations, batch_size = _length(work_dir)
    results = read_scalars(work_dir, iterations)
    last = work_dir / f'iter_{iterations}.pth'
    if not results and last.is_file():  # stopped in its last validation; mmengine repeats none
        words = ['mmseg-repvgg', 'test', TRAINED[name], last.as_posix()]
        run_command(shlex.join([*words, '--work-dir', (work_dir / TEST).as_posix()]))
        results = read_scalars(work_dir, iterations)
    if not results:
        return (
            f'{work_dir} holds no validation after iteration {iterations}: see the log above; '
            'train_cfg.val_interval must divide train_cfg.max_iters'
        )
    Training(
        name=name,
        config=TRAINED[name],
        seed=seed,
        command=command,
        date=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        iterations=iterations,
        images=iterations * batch_size,
        machine=describe_machine(),
        weights=_publish(last, path),
        **describe_code(),
        **results,
    ).write(path)
    return ''


def _publish(checkpoint: Path, record: Path) -> dict[str, Any]:
    """Write the weights beside the record, and describe the file."""
    file = publish_weights(checkpoint, make_folder(record.parent / WEIGHTS), record.stem)
    content = file.read_bytes()
    return dict(file=file.name, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def run_command(command: str) -> int:
    """Run ``mmseg-repvgg ...`` in a process of its own; return its exit code."""
    words = shlex.split(command)
    return subprocess.run([sys.executable, '-m', 'mmseg_repvgg', *words[1:]]).returncode


def read_scalars(work_dir: Path, iterations: int) -> dict[str, Any]:
    """Results of a training from mmengine's logs of all of its runs.

    Iterations that ran twice, because a run was interrupted after its last checkpoint, count once.

    Args:
        work_dir: With ``<run>/vis_data/scalars.json`` of every run; ``test/<run>/<run>.json``
            counts as a validation after the last iteration.
        iterations: Of the whole training.

    Returns:
        Scores and seconds of :class:`Training`; empty without a validation after the last one.
    """
    try:
        log = read_training(work_dir, evaluations=True)
    except ValueError:  # it has not begun
        return {}
    scores = {step: row for step, row in log.rows if 'mIoU' in row}
    for file in sorted((work_dir / TEST).glob('*/*.json')):
        scores[iterations] = json.loads(file.read_text(encoding='utf-8'))
    if iterations not in scores:
        return {}
    logged = [(step, row) for step, row in log.rows if 'loss' in row and 'time' in row]
    steps = [step for step, _ in logged]
    ends = [*steps[:-1], iterations] if steps else []
    lengths = [end - begin for begin, end in zip([0, *steps], ends, strict=False)]
    return dict(
        miou=scores[iterations]['mIoU'],
        pixel_accuracy=scores[iterations]['aAcc'],
        best_miou=max(values['mIoU'] for values in scores.values()),
        # what was logged last holds for the iterations after it
        seconds=sum(row['time'] * n for (_, row), n in zip(logged, lengths, strict=True)) or None,
        losses=[[step, row['loss']] for step, row in logged],
        validations=[[step, values['mIoU']] for step, values in sorted(scores.items())],
    )


def _length(work_dir: Path) -> tuple[int, int]:
    """Iterations and batch size of the newest config in a work folder."""
    from mmengine.config import Config

    (config, *_) = sorted(work_dir.glob('*.py'), key=os.path.getmtime, reverse=True)
    cfg = Config.fromfile(config)
    return cfg.train_cfg.max_iters, cfg.train_dataloader.batch_size
