"""Writing files: each is complete or not there at all."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
    probe = folder / f'.{os.getpid()}.tmp'
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
    return str(folder / f'.{os.getpid()}.tmp-')


@contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path in the same folder, which becomes ``path`` if the block ends well.

    The temporary name starts with a dot, so that no scan for images or labels takes it for one, and
    keeps the suffix. Through a link its target is written. What had the name before stays until the
    new file is complete and on disk.

    Raises:
        OSError: The file cannot be written; the text names it, the reason and what to check.
    """
    target = Path(os.path.realpath(Path(path).expanduser()))
    temporary = target.with_name(f'.{target.stem}.{os.getpid()}.tmp{target.suffix}')
    try:
        yield temporary
        with temporary.open('rb') as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, target)
    except OSError as error:
        check = (
            f'Check that {target.parent} is a folder you may write to, with enough free space; the '
            'file of that name is as before'
        )
        raise _explained(error, f'{target} was not written', check) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _explained(error: OSError, what: str, check: str) -> OSError:
    return type(error)(error.errno, f'{what}: {error.strerror or error}. {check}')


def sweep(folder: str | os.PathLike[str], age: float = 3600) -> None:
    """Remove temporary files and folders that processes left when they were killed.

    Args:
        folder: Where to look; not in the folders in it.
        age: Seconds. What was changed since stays: on a shared disk it may belong to a process of
            another machine, which cannot be seen from here.
    """
    for entry in Path(folder).glob('.*'):
        match = re.fullmatch(r'\.(?:.*\.)?(\d+)\.tmp([-.].*)?', entry.name)
        if match is None or Path(f'/proc/{match[1]}').exists():
            continue
        with suppress(OSError):
            if time.time() - entry.stat().st_mtime < age:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
