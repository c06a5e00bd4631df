"""Writing files: each is complete or not there at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r'\.(?:.*\.)?(\d+)-[0-9a-f]{8}\.tmp([-.].*)?')
"""The names that :func:`_temporary_name` gives, with the number of the process."""


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder and its parents, unless they exist.

    Raises:
        OSError: If it cannot be made; the message gives the path, the reason and what to check.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        check = 'Check that nothing on its path is a file, and that you may write there'
        raise _explain(error, f'the folder {folder} cannot be made', check) from error
    return folder


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder as :func:`make_folder` does, and check that files can be made in it.

    Raises:
        OSError: If not; the message gives the path, the reason and what to check.
    """
    folder = make_folder(path)
    probe = folder / _temporary_name()
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        check = 'Check its permissions and the free space, or give another folder'
        what = f'nothing can be written to the folder {folder}'
        raise _explain(error, what, check) from error
    return folder


def temporary_folder(folder: Path) -> str:
    """A name prefix for a temporary folder in ``folder``, such that :func:`sweep` finds it."""
    # absolute: tempfile would put a relative one into the system's temporary folder
    return os.path.abspath(folder / _temporary_name(suffix='-'))


def _temporary_name(stem: str = '', suffix: str = '') -> str:
    """A hidden name, unique across calls, threads, processes and machines."""
    # a long stem is cut, because names must not exceed 255 bytes
    beginning = f'.{stem[:40]}' if stem else ''
    return f'{beginning}.{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}'


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder, which becomes ``path`` if the block succeeds.

    The temporary name keeps the suffix, and starts with a dot, so that scans for images or labels
    skip it. Links are followed. An existing file stays until the new one is complete and on disk;
    its permissions are kept.

    Raises:
        OSError: If the file cannot be written; the message gives the path, the reason and what to
            check. Errors of the block about other files are not changed.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    temporary = target.with_name(_temporary_name(target.stem, target.suffix))
    try:
        yield temporary
        with suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        with temporary.open('rb+') as stream:  # Windows cannot flush a file opened for reading
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        check = (
            f'Check that {target.parent} is a folder you may write to, with enough free space; an '
            'existing file of that name is unchanged'
        )
        raise _explain(error, f'{target} was not written', check) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _explain(error: OSError, what: str, check: str) -> OSError:
    # OSError chooses the subclass by the number
    return OSError(error.errno, f'{what}: {error.strerror or error}. {check}')


def sweep(folder: str | os.PathLike[str], age: float = 3600) -> None:
    """Remove temporary files and folders that processes left when they were killed.

    Args:
        folder: Where to look; its subfolders are not searched.
        age: Seconds. Newer entries stay: on a shared disk they may belong to a process of another
            machine, which is not visible from here.
    """
    for entry in Path(folder).glob('.*'):
        match = _TEMPORARY.fullmatch(entry.name)
        if match is None or _is_running(int(match[1])):
            continue
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime < age:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()


def _is_running(process: int) -> bool:
    """Whether there is a process with this id; True where this is unknown (Windows)."""
    if os.name != 'posix':
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True
