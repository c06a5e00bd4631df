"""Runs many small jobs in parallel processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from tqdm import tqdm


def run_jobs(
    function: Callable[..., None], jobs: Sequence[tuple[Any, ...]], workers: int, title: str
) -> None:
    """Call ``function(*job)`` for all jobs, in processes if there are several workers.

    Args:
        function: defined at the top level of a module.
        jobs: arguments of each call.
        workers: number of processes; 1 uses the calling process.
        title: of the progress bar, which is shown on a terminal only.

    Raises:
        ValueError: ``workers`` is less than 1.
        Exception: the first that a job raises; jobs not yet started are then dropped.
    """
    if workers < 1:
        raise ValueError(f'workers is {workers}, must be 1 (no extra processes) or more')
    with tqdm(total=len(jobs), desc=title, disable=None) as bar:
        if workers == 1 or len(jobs) < 2:
            for job in jobs:
                function(*job)
                bar.update()
            return
        pool = ProcessPoolExecutor(min(workers, len(jobs)))
        try:
            for future in as_completed([pool.submit(function, *job) for job in jobs]):
                future.result()
                bar.update()
        finally:
            pool.shutdown(cancel_futures=True)
