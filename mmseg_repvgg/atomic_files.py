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
    """Make a folder, and those above it, where they are not there.

    Raises:
        OSError: It cannot be made; the text names it, the reason and what to check.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        check = 'Check that nothing on its path is a file, and that you may write there'
        raise _explained(error, f'the folder {folder} cannot be made', check) from error
    return folder


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder as :func:`make_folder` does, and see that files can be made in it.

    Raises:
        OSError: They cannot; the text names it, the reason and what to check.
    """
    folder = make_folder(path)
    probe = folder / _temporary_name()
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        check = 'Check its permissions and the free space, or give another'
        what = f'nothing can be written to the folder {folder}'
        raise _explained(error, what, check) from error
    return folder


def temporary_folder(folder: Path) -> str:
    """The beginning of the name of a temporary folder in another, which :func:`sweep` knows."""
    # absolute: tempfile would look for a relative one in the system's folder of temporary files
    return os.path.abspath(folder / _temporary_name(suffix='-'))


def _temporary_name(stem: str = '', suffix: str = '') -> str:
    """A hidden name that no other call gives, in whatever process, thread or machine."""
    # of a long stem a part, for names must not exceed 255 bytes
    beginning = f'.{stem[:40]}' if stem else ''
    return f'{beginning}.{os.getpid()}-{secrets.token_hex(4)}.tmp{suffix}'


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder, which becomes ``path`` if the block ends well.

    The temporary name starts with a dot, so that no scan for images or labels takes it for one, and
    keeps the suffix. Through a link its target is written. What had the name before stays until the
    new file is complete and on disk; its permissions are kept.

    Raises:
        OSError: The file cannot be written; the text names it, the reason and what to check. What
            the block raises about other files is raised as it is.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    temporary = target.with_name(_temporary_name(target.stem, target.suffix))
    try:
        yield temporary
        with suppress(FileNotFoundError):
            shutil.copymode(target, temporary)
        with temporary.open('rb+') as stream:  # Windows flushes no file that is open for reading
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        check = (
            f'Check that {target.parent} is a folder you may write to, with enough free space; the '
            'file of that name is as before'
        )
        raise _explained(error, f'{target} was not written', check) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _explained(error: OSError, what: str, check: str) -> OSError:
    # OSError chooses the subclass by the number
    return OSError(error.errno, f'{what}: {error.strerror or error}. {check}')


def sweep(folder: str | os.PathLike[str], age: float = 3600) -> None:
    """Remove temporary files and folders that processes left when they were killed.

    Args:
        folder: Where to look; not in the folders in it.
        age: Seconds. What was changed since stays: on a shared disk it may belong to a process of
            another machine, which cannot be seen from here.
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
    """Whether there is a process of that number; True where one cannot ask (Windows)."""
    if os.name != 'posix':
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
