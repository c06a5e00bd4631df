"""Measuring candidates in turn: warm-up, then timed rounds a, b, c, a, b, c, ..."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from mmseg_repvgg.benchmark.candidate import Candidate, Outcome
from mmseg_repvgg.benchmark.worker import Worker, WorkerError


@dataclass(frozen=True)
class Protocol:
    """How a benchmark is measured."""

    rounds: int = 5  # timed calls of each candidate
    warm_up: int = 1  # calls before them
    threads: int = 1
    time_limit: float = 600  # seconds for building, and for each call
    pause: float = 0.2  # seconds between calls, in which threads of the last one come to rest

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warm_up < 0 or self.threads < 1 or self.time_limit <= 0:
            raise ValueError(
                f'{asdict(self)}: rounds and threads must be at least 1, warm_up at least 0, '
                'time_limit positive'
            )


def measure(
    candidates: Sequence[Candidate],
    protocol: Protocol,
    say: Callable[[str], None] = lambda text: None,
) -> list[Outcome]:
    """Build all candidates, then call them in turn, so that the machine's drift cancels in ratios.

    A candidate that fails, or takes longer than the time limit, has its failure as its outcome; the
    others go on.

    Args:
        candidates: With names that differ.
        protocol: How.
        say: Takes a line of progress.

    Returns:
        The outcomes in the order of the candidates.

    Raises:
        ValueError: If there are no candidates or two have one name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) < len(names):
        raise ValueError(f'need candidates with names that differ, not {names}')
    outcomes = {name: Outcome(candidate) for name, candidate in zip(names, candidates, strict=True)}
    workers: dict[str, Worker] = {}
    try:
        for name, outcome in outcomes.items():
            workers[name] = Worker(outcome.candidate, protocol.threads, protocol.time_limit)
            _step(workers, outcome, lambda w, o: o.info.update(w.ask('build')))
            say(f'{name}: {outcome.failure or "built"}')
        for round_ in range(-protocol.warm_up, protocol.rounds):
            for name in list(workers):
                time.sleep(protocol.pause)
                _step(workers, outcomes[name], _warm_up if round_ < 0 else _timed)
            say(f'round {round_ + 1} of {protocol.rounds}')
        for name in list(workers):
            _step(workers, outcomes[name], _finish)
    finally:
        for worker in workers.values():
            worker.stop()
    return list(outcomes.values())


def _warm_up(worker: Worker, outcome: Outcome) -> None:
    worker.ask('call')


def _timed(worker: Worker, outcome: Outcome) -> None:
    outcome.seconds.append(worker.ask('call'))


def _finish(worker: Worker, outcome: Outcome) -> None:
    outcome.peak_memory, outcome.output = worker.ask('memory'), worker.ask('output')


def _step(
    workers: dict[str, Worker], outcome: Outcome, step: Callable[[Worker, Outcome], object]
) -> None:
    """Do a step with a candidate's worker; on failure note it and let the worker go."""
    name = outcome.candidate.name
    try:
        step(workers[name], outcome)
    except WorkerError as error:
        outcome.failure, outcome.seconds = str(error), []
        workers.pop(name).stop()
