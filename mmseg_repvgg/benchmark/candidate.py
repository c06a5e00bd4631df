"""What a benchmark measures: a thing that is built and called, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

NETWORKS = 'mmseg_repvgg.benchmark.networks'
"""The module of most builders; it is imported in the candidate's process only."""


@dataclass(frozen=True)
class Candidate:
    """A row of a benchmark, before it is built."""

    name: str  # unique within a benchmark
    builder: str  # 'module:function'; it gives a Built
    settings: dict[str, Any] = field(default_factory=dict)  # of the builder, in JSON's types
    examples: int = 1  # images a call takes
    spins: bool = False  # whether idle threads wait awake for some milliseconds, OpenMP's default


@dataclass(frozen=True)
class Built:
    """A candidate, built: ``call`` does the work that is timed, and waits for its end.

    ``output`` gives what the last call computed, as class indices, to be compared with that of
    other candidates; None where there is nothing to compare.
    """

    call: Callable[[], object]
    output: Callable[[], np.ndarray] | None = None
    info: dict[str, Any] = field(default_factory=dict)  # in JSON's types
    memory: Callable[[], int] | None = None  # peak bytes on a GPU since it was built


@dataclass
class Outcome:
    """What was measured of a candidate."""

    candidate: Candidate
    seconds: list[float] = field(default_factory=list)  # of every timed call
    info: dict[str, Any] = field(default_factory=dict)
    peak_memory: int | None = None  # bytes, of the whole process (on a GPU: allocated there)
    failure: str | None = None  # why there are no figures
    output: np.ndarray | None = None  # class indices
