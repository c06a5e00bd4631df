"""What a benchmark measures, a candidate, and what it finds, a row."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NETWORKS = 'mmseg_repvgg.benchmark.networks'
"""The module of most builders; it is imported in the candidate's process only."""


@dataclass(frozen=True)
class Candidate:
    """A row of a benchmark, before it is built."""

    name: str  # unique within a group
    builder: str  # 'module:function', which returns a Built
    settings: dict[str, Any] = field(default_factory=dict)  # builder's arguments, JSON types only
    examples: int = 1  # images a call takes
    spins: bool = False  # whether idle threads spin for some milliseconds, OpenMP's default


@dataclass(frozen=True)
class Built:
    """A built candidate: ``call`` does the timed work and waits until it is done.

    ``output`` returns the class indices that the last call computed, to compare them with those of
    other candidates; None if there is nothing to compare.
    """

    call: Callable[[], object]
    output: Callable[[], np.ndarray] | None = None
    info: dict[str, Any] = field(default_factory=dict)  # in JSON's types
    memory: Callable[[], int] | None = None  # peak bytes on a GPU since it was built


@dataclass
class Row:
    """What was measured of a candidate, as in the JSON file of a record."""

    name: str
    group: str  # the candidates that were measured in turn
    settings: dict[str, Any]
    examples: int
    seconds: list[float] = field(default_factory=list)  # of a call, the mean of every timed round
    info: dict[str, Any] = field(default_factory=dict)
    peak_memory: int | None = None  # bytes, of the whole process (on a GPU: allocated there)
    agreement: float | None = None  # share of outputs with the same class as the reference's
    failure: str | None = None  # why there are no figures
    calls: int = 1  # per round

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


@dataclass
class Outcome:
    """A candidate, its row, and its output to be compared."""

    candidate: Candidate
    row: Row
    output: np.ndarray | None = None  # class indices
