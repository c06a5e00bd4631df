"""Measuring candidates in turn: warm-up, then timed rounds a, b, c, a, b, c, ..."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from mmseg_repvgg.benchmark.candidate import Candidate, Outcome, Row
from mmseg_repvgg.benchmark.worker import Worker, WorkerError


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is measured."""

    rounds: int = 5  # timed blocks of calls of each candidate
    warm_up: int = 3  # blocks before them
    threads: int = 1
    time_limit: float = 600  # seconds for building, and for each block
    pause: float = 0.2  # seconds between blocks, so that threads of the last call go idle
    block: float = 1.0  # minimum seconds of a block: short calls are repeated

    def __post_init__(self) -> None:
        if min(self.rounds, self.threads, self.warm_up + 1) < 1 or self.time_limit <= 0:
            raise ValueError(
                f'{asdict(self)}: rounds and threads must be at least 1, warm_up at least 0, '
                'time_limit positive'
            )


def measure(
    candidates: Sequence[Candidate],
    protocol: Protocol,
    say: Callable[[str], None] = lambda text: None,
    group: str = '',
) -> list[Outcome]:
    """Build all candidates, then call them in turn, so that slowdowns cancel in the ratios.

    If a candidate fails or exceeds the time limit, its row holds the reason; the others go on.

    Args:
        candidates: Their names must differ.
        protocol: How to measure.
        say: Called with each line of progress.
        group: Name of the group in the rows.

    Returns:
        The outcomes in the order of the candidates.

    Raises:
        ValueError: If there are no candidates, or two have the same name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'need candidates with names that differ, not {names}')
    runs: list[tuple[Worker, Outcome]] = []
    try:
        for candidate in candidates:
            worker = Worker(candidate, protocol.threads, protocol.time_limit)
            row = Row(candidate.name, group, candidate.settings, candidate.examples)
            runs.append((worker, Outcome(candidate, row)))
            with _failure_stops(worker, row):
                row.info.update(worker.ask('build'))
            say(f'{row.name}: {row.failure or "built"}')
        for round_ in range(-protocol.warm_up, protocol.rounds):
            for worker, outcome in _working(runs):
                row = outcome.row
                time.sleep(protocol.pause)
                with _failure_stops(worker, row):
                    seconds = worker.ask('call', row.calls)
                    if round_ >= 0:
                        row.seconds.append(seconds)
                    else:  # one call at first; then as many as a block takes
                        row.calls = max(1, math.ceil(protocol.block / max(seconds, 1e-6)))
            say(f'round {round_ + 1} of {protocol.rounds}')
        for worker, outcome in _working(runs):
            with _failure_stops(worker, outcome.row):
                outcome.row.peak_memory = worker.ask('memory')
                outcome.output = worker.ask('output')
    finally:
        for worker, _ in runs:
            worker.stop()
    return [outcome for _, outcome in runs]


def _working(runs: list[tuple[Worker, Outcome]]) -> list[tuple[Worker, Outcome]]:
    return [(worker, outcome) for worker, outcome in runs if not outcome.row.failure]


@contextmanager
def _failure_stops(worker: Worker, row: Row) -> Iterator[None]:
    """If the block fails, store the reason in the row and stop the worker."""
    try:
        yield
    except WorkerError as error:
        row.failure, row.seconds = str(error), []
        worker.stop()
