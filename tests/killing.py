"""Killing a process with signal 9 in a chosen phase, at a random moment or at a certain line."""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from tests import processes

PHASES = 'start', 'train', 'save', 'validate', 'end'


class Phase:
    """What a forked process is doing, for its parent to see; also when it is dead."""

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 1)
        self.set('start')

    def set(self, name: str) -> None:
        self._shared[0] = PHASES.index(name)

    def __str__(self) -> str:
        return PHASES[self._shared[0]]

    def wraps(self, function: Callable, name: str) -> Callable:
        """The function, with a phase of its own."""

        def wrapped(*args, **kwargs):
            before = str(self)
            self.set(name)
            try:
                return function(*args, **kwargs)
            finally:
                self.set(before)

        return wrapped


def kill_in_phase(
    target: str, longest: float, draw: random.Random, phase: Phase, function: Callable, *args: Any
) -> str:
    """Kill a process up to ``longest`` seconds after it has entered a phase; the phase it was in.

    It is 'end' if the process ended before.
    """
    phase.set('start')
    process = processes.start(function, *args)
    while str(phase) not in (target, 'end') and os.waitid(os.P_PID, process, ENDED) is None:
        time.sleep(0.0002)
    time.sleep(draw.random() * longest)
    os.kill(process, signal.SIGKILL)
    code = processes.wait(process)
    assert code in (0, -signal.SIGKILL), f'exit code {code} in the phase {phase}'
    return 'end' if code == 0 else str(phase)


ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT


def die_at_line(
    number: int, files: Iterable[str], functions: Iterable[str] = (), phase: Phase | None = None
) -> None:
    """From now on count the lines that this process executes in some files, and die at one.

    Counted are those of the functions with the names (of all if there are none), and only while
    ``phase``, if given, is 'save'.
    """
    endings, names, left = tuple(files), frozenset(functions), number

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if event == 'line' and (phase is None or str(phase) == 'save'):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        code = frame.f_code
        wanted = not names or code.co_name in names
        return local if wanted and code.co_filename.endswith(endings) else None

    sys.settrace(trace)


def half_writes() -> None:
    """Let this process write bytes in two halves, so that it can be killed between them."""

    def write_bytes(path: Path, content: Any) -> int:
        view = memoryview(content)
        with open(path, 'wb') as stream:
            stream.write(view[: len(view) // 2])
            stream.flush()
            return stream.write(view[len(view) // 2 :])

    Path.write_bytes = write_bytes  # type: ignore[method-assign]
