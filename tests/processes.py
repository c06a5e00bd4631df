"""Processes forked from the test's own, in which everything is imported already."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIME_LIMIT = 120.0
"""Seconds after which a process is taken to hang."""


def start(function: Callable[..., Any], *args: Any, output: Path | None = None) -> int:
    """Call a function in a forked process; its id.

    It exits with 0, or with 1 after an exception. What it prints goes to the file ``output``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        file = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.stdout, sys.stderr = os.fdopen(1, 'w'), os.fdopen(2, 'w')  # not those of pytest
        function(*args)
        code = 0
    except SystemExit as error:  # of a tool
        print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, time_limit: float = TIME_LIMIT) -> int:
    """The exit code of a process; minus the signal if one ended it. One that hangs is killed."""
    end = time.monotonic() + time_limit
    while time.monotonic() < end:
        found, status = os.waitpid(process, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise AssertionError(f'process {process} did not end in {time_limit} s')


def run(function: Callable[..., Any], *args: Any, output: Path | None = None) -> int:
    """Call a function in a forked process; its exit code."""
    return wait(start(function, *args, output=output))


def run_ranks(
    count: int, function: Callable[..., Any], *args: Any, output: Path, port: int
) -> list[int]:
    """Call a function in processes with the environment that torchrun gives them; exit codes."""

    def ranked(rank: int) -> None:
        names = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=count, MASTER_PORT=port)
        os.environ.update({name: str(value) for name, value in names.items()})
        os.environ['MASTER_ADDR'] = '127.0.0.1'
        function(*args)

    files = [output.with_name(f'{output.name}.{rank}') for rank in range(count)]
    processes = [start(ranked, rank, output=file) for rank, file in enumerate(files)]
    return [wait(process) for process in processes]
