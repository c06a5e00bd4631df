"""A process for one candidate: builds it, calls it on request, reports its peak memory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pkgutil
import time
import traceback
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

from mmseg_repvgg.benchmark.candidate import Candidate

THREAD_VARIABLES = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')


class WorkerError(RuntimeError):
    """A candidate failed; the text says how."""


class Worker:
    """The parent's handle on a candidate's process.

    In separate processes, the threads and memory of one library do not affect the figures of
    another, and a candidate can fail or be stopped without the others.

    Args:
        candidate: What the process builds and calls.
        threads: Number of threads of each library.
        time_limit: Seconds for building, and for each call.
    """

    def __init__(self, candidate: Candidate, threads: int, time_limit: float) -> None:
        self.time_limit = time_limit
        context = multiprocessing.get_context('spawn')
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, candidate, threads), daemon=True
        )
        # libraries read on import how many threads to use, and how idle ones wait
        with mock.patch.dict(os.environ, dict.fromkeys(THREAD_VARIABLES, str(threads))):
            os.environ.pop('OMP_WAIT_POLICY', None)
            if not candidate.spins:
                os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'
            self._process.start()
        theirs.close()

    def ask(self, command: str, *arguments: Any) -> Any:
        """Send a command and wait for the answer.

        Args:
            command: ``build`` (returns the info), ``call`` (mean seconds per call), ``output``
                (class indices or None), ``memory`` (peak bytes since the build).
            *arguments: Of ``call``: the number of calls.

        Raises:
            WorkerError: If the command fails, the process ends, or the time limit is exceeded; the
                worker can only be stopped then.
        """
        try:
            self._connection.send((command, *arguments))
            if not self._connection.poll(self.time_limit):
                raise WorkerError(f'not done within {self.time_limit:g} s')
            answer, value = self._connection.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(10)
            code = self._process.exitcode
            reason = ', probably out of memory' if code == -9 else ''
            raise WorkerError(f'its process ended with code {code}{reason}') from None
        if answer == 'failed':
            raise WorkerError(value)
        return value

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, candidate: Candidate, threads: int) -> None:
    """Answer the parent until it closes the connection."""
    with contextlib.suppress(OSError):  # out of memory: kill this process, not the parent
        Path('/proc/self/oom_score_adj').write_text('900')
    built: Any = None
    while True:
        try:
            command, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if command == 'build':
                built = _build(candidate, threads)
                answer = built.info
            else:
                answer = _COMMANDS[command](built, *arguments)
            connection.send(('done', answer))
        except BaseException as error:
            text = str(error).strip() or type(error).__name__
            where = traceback.extract_tb(error.__traceback__)[-1]
            connection.send(('failed', f'{text} ({Path(where.filename).name}:{where.lineno})'))


def _build(candidate: Candidate, threads: int) -> Any:
    import torch

    warnings.simplefilter('ignore')  # library warnings do not matter here
    torch.set_num_threads(threads)
    built = pkgutil.resolve_name(candidate.builder)(**candidate.settings)
    with contextlib.suppress(OSError):
        resident_peak(reset=True)
    return built


def _call(built: Any, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        built.call()
    return (time.perf_counter() - start) / calls


def resident_peak(reset: bool = False) -> int:
    """Peak resident memory of this process in bytes, as the kernel counts it.

    Args:
        reset: First reset the peak to the current resident memory.

    Raises:
        OSError: If there is no ``/proc``.
    """
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    lines = Path('/proc/self/status').read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith('VmHWM:'))
    return int(kilobytes) * 1024


def _peak_memory(built: Any) -> int | None:
    """Peak bytes since the build: the candidate's own count if it has one, else resident memory."""
    if built.memory is not None:
        return built.memory()
    with contextlib.suppress(OSError):
        return resident_peak()
    return None


_COMMANDS: dict[str, Callable[..., Any]] = {
    'call': _call,
    'output': lambda built: built.output() if built.output else None,
    'memory': _peak_memory,
}
