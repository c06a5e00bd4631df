"""Timing things in turn within one run, so that the machine's drift cancels in their ratio."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], repeats: int = 10, warm_up: int = 2
) -> dict[str, list[float]]:
    """Time several calls round by round: a, b, a, b, ...

    Args:
        calls: What to time, by name. An asynchronous call (CUDA) must wait until it is done.
        repeats: Timed rounds.
        warm_up: Rounds before them that are not timed.

    Returns:
        The seconds of every timed round, by name.

    Raises:
        ValueError: If there is nothing to time.
    """
    if not calls or repeats < 1:
        raise ValueError(f'need calls and repeats >= 1, not {list(calls)} and {repeats}')
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_ in range(warm_up + repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_ >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """A ratio of times and its 95 % confidence interval, which is NaN after a single round."""

    value: float
    low: float
    high: float

    @property
    def is_decided(self) -> bool:
        """Whether the interval excludes 1, which would mean equally fast."""
        return self.low > 1 or self.high < 1

    def __str__(self) -> str:
        if self.low == self.high == 1:  # a thing compared with itself
            return '1'
        if math.isnan(self.low):
            return f'{self.value:.2f} (one round)'
        undecided = '' if self.is_decided else ', undecided'
        return f'{self.value:.2f} ({self.low:.2f} to {self.high:.2f}{undecided})'


def paired_ratio(slow: Sequence[float], fast: Sequence[float], scale: float = 1) -> Ratio:
    """How many times as fast ``fast`` is, from the ratios of both times in every round.

    The value is their geometric mean. The interval is Student's, of the mean of their logarithms: a
    ratio and its inverse get the same verdict, and drift from round to round cancels.

    Args:
        slow: Seconds of every round.
        fast: Seconds of the same rounds.
        scale: Times the work that ``fast`` does in its time.

    Raises:
        ValueError: If there are no rounds, or not as many of both.
    """
    if not slow or len(slow) != len(fast):
        raise ValueError(f'need the times of the same rounds, not {len(slow)} and {len(fast)}')
    from scipy.stats import t

    logs = np.log(scale * np.divide(slow, fast))
    half = math.nan
    if len(logs) > 1:
        half = t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    return Ratio(*(float(np.exp(logs.mean() + shift)) for shift in (0, -half, half)))
