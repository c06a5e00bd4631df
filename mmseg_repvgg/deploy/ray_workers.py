"""Starting Ray on this machine, or connecting to a cluster."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from mmseg_repvgg.checks import check_integer
from mmseg_repvgg.deploy.runtimes.base import num_cores

OBJECT_STORE = 512 * 2**20
"""Bytes of Ray's memory for names of images and rows, started on this machine."""


CONNECTION_SECONDS = 20


@dataclass(frozen=True)
class Workers:
    """The processes that segment.

    Raises:
        ValueError: If a number is not positive.
    """

    count: int | None = None  # None: as many as there are CPUs for their threads
    threads: int = 1  # of each; those of the segmenter
    address: str | None = None  # of a cluster; None: Ray is started on this machine, and stopped
    num_gpus: int = 0  # of each

    def __post_init__(self) -> None:
        check_integer('threads', self.threads, 1)
        if self.count is not None:
            check_integer('workers', self.count, 1)

    @classmethod
    def sharing_cores(
        cls, count: int | None, threads: int | None, address: str | None = None, num_gpus: int = 0
    ) -> Workers:
        """Workers that share the CPUs of this machine, where numbers are not given.

        On a cluster, whose machines may differ, ``threads`` is 1 unless it is given.
        """
        workers = cls(count, 1 if threads is None else threads, address, num_gpus)
        if count is None or threads is not None or address is not None:
            return workers
        return replace(workers, threads=max(1, num_cores() // count))


@contextmanager
def start_ray(workers: Workers) -> Iterator[int]:
    """Start Ray or connect to a cluster, unless the process has done so; the number of workers."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    os.environ.setdefault('RAY_BACKEND_LOG_LEVEL', 'fatal')  # of its C++ parts
    import ray.data

    logging.getLogger('ray').setLevel(logging.ERROR)
    logging.getLogger('ray.data').setLevel(logging.ERROR)
    if ray.is_initialized():
        yield _count(workers)
        return
    options: dict[str, Any] = dict(address=workers.address)
    if workers.address is None:
        cores = workers.count or max(1, num_cores() // workers.threads)
        options = dict(
            address='local',
            num_cpus=cores * workers.threads,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE,
        )
    try:
        _check_that_it_answers(workers.address)
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        where = f'at {workers.address}' if workers.address else 'on this machine'
        raise RuntimeError(f'Ray cannot be used {where}: {error}') from error
    try:
        yield _count(workers)
    finally:
        ray.shutdown()


def _check_that_it_answers(address: str | None) -> None:
    """Raise OSError if nothing listens at HOST:PORT, which Ray would try for many minutes."""
    host, _, port = (address or '').rpartition('/')[2].rpartition(':')
    if host and port.isdecimal():
        socket.create_connection((host.strip('[]'), int(port)), CONNECTION_SECONDS).close()


def _count(workers: Workers) -> int:
    import ray

    if workers.count is not None:
        return workers.count
    return max(1, int(ray.cluster_resources().get('CPU', 1)) // workers.threads)
