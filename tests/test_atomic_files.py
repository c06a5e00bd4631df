"""Files are complete or as they were, and errors say which file they are about."""

import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mmseg_repvgg.atomic_files import atomic_file


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    file = tmp_path / 'file.txt'
    file.write_text('old')
    with pytest.raises(OSError, match='was not written: File too large'):
        limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        try:
            with atomic_file(file) as temporary:
                temporary.write_text('new ' * 10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    assert file.read_text() == 'old'
    assert [entry.name for entry in tmp_path.iterdir()] == ['file.txt']


def test_threads_that_write_the_same_file_do_not_mix(tmp_path):
    file = tmp_path / 'file.txt'

    def write(letter: str) -> None:
        for _ in range(50):
            with atomic_file(file) as temporary:
                temporary.write_text(letter * 1000)
            assert file.read_text() in ('a' * 1000, 'b' * 1000)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, 'ab'))
    assert [entry.name for entry in tmp_path.iterdir()] == ['file.txt']


def test_permissions_are_kept_and_long_names_written(tmp_path):
    file = tmp_path / f'{"n" * 247}.pth'  # 251 bytes, of 255 that a file system allows
    file.write_text('old')
    file.chmod(0o640)
    with atomic_file(file) as temporary:
        temporary.write_text('new')
    assert (file.read_text(), file.stat().st_mode & 0o777) == ('new', 0o640)


class OwnError(OSError):
    def __init__(self, text: str) -> None:
        super().__init__(text)


def write(file: Path, source: Path) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(source.read_text())


def test_errors_about_other_files_are_not_taken_for_those_of_writing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '/no/such/input'$"):
        write(tmp_path / 'a', Path('/no/such/input'))
    with pytest.raises(OwnError, match='^mine$'), atomic_file(tmp_path / 'a'):
        raise OwnError('mine')
    with pytest.raises(FileNotFoundError, match='a was not written: No such file'):
        write(tmp_path / 'no' / 'a', Path(__file__))
