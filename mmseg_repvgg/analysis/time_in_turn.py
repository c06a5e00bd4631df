"""Timing things in turn within one run, so that the machine's drift cancels in their ratio."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


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


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """How many times as fast ``fast`` is: the median of the ratios round by round."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))
