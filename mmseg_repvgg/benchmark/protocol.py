"""Measuring candidates in turn: warm-up, then timed rounds a, b, c, a, b, c, ..."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from mmseg_repvgg.benchmark.candidate import Candidate, Outcome
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
) -> list[Outcome]:
    """Build all candidates, then call them in turn, so that slowdowns cancel in the ratios.

    If a candidate fails or exceeds the time limit, its outcome holds the reason; the others go on.

    Args:
        candidates: Their names must differ.
        protocol: How to measure.
        say: Called with each line of progress.

    Returns:
        The outcomes in the order of the candidates.

    Raises:
        ValueError: If there are no candidates, or two have the same name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'need candidates with names that differ, not {names}')
    outcomes = {name: Outcome(candidate) for name, candidate in zip(names, candidates, strict=True)}
    workers: dict[str, Worker] = {}
    try:
        for name, outcome in outcomes.items():
            workers[name] = Worker(outcome.candidate, protocol.threads, protocol.time_limit)
            _run_step(workers, outcome, lambda w, o: o.info.update(w.ask('build')))
            say(f'{name}: {outcome.failure or "built"}')
        for round_ in range(-protocol.warm_up, protocol.rounds):
            for name in list(workers):
                time.sleep(protocol.pause)
                warm_up = partial(_warm_up_block, block=protocol.block)
                _run_step(workers, outcomes[name], warm_up if round_ < 0 else _timed_block)
            say(f'round {round_ + 1} of {protocol.rounds}')
        for name in list(workers):
            _run_step(workers, outcomes[name], _finish)
    finally:
        for worker in workers.values():
            worker.stop()
    return list(outcomes.values())


def _warm_up_block(worker: Worker, outcome: Outcome, block: float) -> None:
    """One call at first, then blocks; from each follows the number of calls of the next block."""
    seconds = worker.ask('call', outcome.calls)
    outcome.calls = max(1, math.ceil(block / max(seconds, 1e-6)))


def _timed_block(worker: Worker, outcome: Outcome) -> None:
    outcome.seconds.append(worker.ask('call', outcome.calls))


def _finish(worker: Worker, outcome: Outcome) -> None:
    outcome.peak_memory, outcome.output = worker.ask('memory'), worker.ask('output')


def _run_step(
    workers: dict[str, Worker], outcome: Outcome, step: Callable[[Worker, Outcome], object]
) -> None:
    """Run a step with a candidate's worker; if it fails, store the reason and stop the worker."""
    name = outcome.candidate.name
    try:
        step(workers[name], outcome)
    except WorkerError as error:
        outcome.failure, outcome.seconds = str(error), []
        workers.pop(name).stop()
