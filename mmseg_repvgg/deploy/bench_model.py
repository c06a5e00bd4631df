"""Latency and throughput of an exported model, as a service would use it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmseg_repvgg.checks import check_integer, check_size, is_positive
from mmseg_repvgg.deploy.segmenter import Segmenter

SMALLEST_COUNT = 5
"""Calls of each caller, however long they take."""


@dataclass(frozen=True)
class Timing:
    """What :func:`bench_model` measured."""

    size: tuple[int, int]  # height, width of the images
    batch: int  # images a call
    callers: int
    calls: int
    first: float  # seconds of the first call, which is not among the others
    p50: float  # seconds a call; half of the calls took no longer
    p95: float
    images_per_second: float  # of all callers together

    def __str__(self) -> str:
        height, width = self.size
        images = f'{self.batch} image{"s" * (self.batch > 1)} of {height}x{width}'
        callers = f'{self.callers} caller{"s" * (self.callers > 1)}'
        return '\n'.join(
            [
                f'{self.calls} calls by {callers}, {images} each; first call {_ms(self.first)}',
                f'latency of a call: p50 {_ms(self.p50)}, p95 {_ms(self.p95)}',
                f'throughput: {self.images_per_second:.4g} images/s',
            ]
        )

    def as_dict(self) -> dict[str, object]:
        """For JSON; times in seconds."""
        return asdict(self)


def bench_model(
    segmenter: Segmenter,
    size: tuple[int, int] | None = None,
    batch: int = 1,
    callers: int = 1,
    seconds: float = 10.0,
) -> Timing:
    """Time calls of a Segmenter: from an image in memory to its label map.

    Reading of files is not part of it. Images are random pixels, on which no step depends.

    Args:
        segmenter: The model; its runtime's number of threads is chosen when it is loaded.
        size: Height and width of the images; None: of the network's input.
        batch: Images a call. More than one are given as a list.
        callers: Threads that call at the same time.
        seconds: For how long; each caller makes at least :data:`SMALLEST_COUNT` calls.

    Raises:
        ValueError: On a wrong argument, or if the model does not take such images.
    """
    size = segmenter.info.size if size is None else size
    check_size('size', size)
    check_integer('batch', batch, 1)
    check_integer('callers', callers, 1)
    if not is_positive(seconds):
        raise ValueError(f'seconds={seconds!r} must be a finite number above 0')
    shape = (*size, segmenter.info.channels)
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    given: Any = image if batch == 1 else [image] * batch
    start = time.perf_counter()
    segmenter(given)
    first = time.perf_counter() - start
    times, whole = _time_calls(lambda: segmenter(given), callers, seconds)
    return Timing(
        (size[0], size[1]),
        batch,
        callers,
        len(times),
        first,
        percentile(times, 50),
        percentile(times, 95),
        batch * len(times) / whole,
    )


def _time_calls(
    call: Callable[[], object], callers: int, seconds: float
) -> tuple[list[float], float]:
    """Seconds of each call, and from the start of the first to the end of the last."""
    times: list[float] = []
    errors: list[BaseException] = []
    together = threading.Barrier(callers)

    def repeat() -> None:
        together.wait()
        end, count = time.perf_counter() + seconds, 0
        while not errors and (count < SMALLEST_COUNT or time.perf_counter() < end):
            start = time.perf_counter()
            try:
                call()
            except BaseException as error:
                errors.append(error)
                return
            times.append(time.perf_counter() - start)
            count += 1

    threads = [threading.Thread(target=repeat) for _ in range(callers)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return times, time.perf_counter() - start


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least this share of the values does not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]


def _ms(seconds: float) -> str:
    return f'{1000 * seconds:.4g} ms'
