"""A folder on this machine or in a storage that pyarrow reads: S3, GCS, Azure, HDFS."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
from pyarrow import fs, parquet

from mmseg_repvgg.atomic_files import atomic_file, make_folder
from mmseg_repvgg.deploy.images import SUFFIXES

OBJECT_STORES = ('s3', 'gcs', 'abfs')
"""Storages in which a file is not there until it is complete, and which have no folders."""


class Folder:
    """A folder and the files in it, whose names are relative to it; can be pickled.

    Args:
        address: A path on this machine, or an address such as ``s3://bucket/images``.

    Raises:
        ValueError: If pyarrow cannot open such an address.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        try:
            if '://' in address:
                self.storage, path = fs.FileSystem.from_uri(address)
            else:
                self.storage = fs.LocalFileSystem()
                path = Path(address).expanduser().resolve().as_posix()
        except (pa.ArrowException, ValueError, OSError) as error:
            raise ValueError(f'{address} cannot be opened by pyarrow: {error}') from error
        self.path = path.rstrip('/')

    def __str__(self) -> str:
        return self.address.rstrip('/')

    def contains(self, other: Folder) -> bool:
        """Whether another folder is this one, or in it."""
        same = self.storage.equals(other.storage)
        return same and f'{other.path}/'.startswith(f'{self.path}/')

    def images(self) -> list[str]:
        """The names of the images in it and its subfolders, sorted; hidden files are left out.

        Raises:
            FileNotFoundError: If there is no such folder.
            OSError: If it cannot be read.
            ValueError: If there are none.
        """
        with _errors(f'{self} cannot be read'):
            kind = self.storage.get_file_info(self.path or '/').type
            if kind == fs.FileType.Directory:
                found = self.storage.get_file_info(fs.FileSelector(self.path, recursive=True))
        if kind == fs.FileType.NotFound:
            raise FileNotFoundError(f'{self} not found; give a folder of images')
        if kind != fs.FileType.Directory:
            raise ValueError(f'{self} is not a folder; give a folder of images')
        start = len(self.path) + 1
        names = [
            info.path[start:]
            for info in found
            if info.is_file
            and info.base_name.lower().endswith(SUFFIXES)
            and not info.base_name.startswith('.')
        ]
        if not names:
            raise ValueError(f'{self} holds no images: {", ".join(SUFFIXES)}')
        return sorted(names)

    def is_empty(self) -> bool:
        """Whether nothing is in it, or it is not there.

        Raises:
            OSError: If it cannot be read.
        """
        with _errors(f'{self} cannot be read'):
            return not self.storage.get_file_info(fs.FileSelector(self.path, allow_not_found=True))

    def exists(self, name: str) -> bool:
        """Whether it has such a file or subfolder.

        Raises:
            OSError: If it cannot be read.
        """
        with _errors(f'{self} cannot be read'):
            info = self.storage.get_file_info(f'{self.path}/{name}')
        return info.type != fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        """The content of a file.

        Raises:
            OSError: If it cannot be read.
        """
        with (
            _errors(f'{self}/{name} cannot be read'),
            self.storage.open_input_stream(f'{self.path}/{name}', compression=None) as stream,
        ):
            return stream.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file, and the folders to it, such that it is complete or not there at all.

        Raises:
            OSError: If it cannot be written.
        """
        path = f'{self.path}/{name}'
        if self.storage.type_name == 'local':
            make_folder(Path(path).parent)
            with atomic_file(path) as temporary:
                temporary.write_bytes(content)
            return
        with _errors(f'{self}/{name} cannot be written'):
            if self.storage.type_name in OBJECT_STORES:
                self._write(path, content)
                return
            parent = path.rpartition('/')[0]
            self.storage.create_dir(parent)
            temporary_path = f'{parent}/.{secrets.token_hex(8)}.tmp'
            self._write(temporary_path, content)
            self.storage.move(temporary_path, path)

    def read_table(self, name: str, columns: list[str]) -> pa.Table | None:
        """Columns of a table that is a subfolder of Parquet files; None if it is not there.

        Raises:
            OSError: If it cannot be read.
        """
        if not self.exists(name):
            return None
        path = f'{self.path}/{name}'
        with _errors(f'{self}/{name} cannot be read'):
            return parquet.read_table(
                path, columns=columns, filesystem=self.storage, partitioning=None
            )

    def remove(self, name: str) -> None:
        """Remove a file, if it is there.

        Raises:
            OSError: If it cannot be removed.
        """
        if self.exists(name):
            with _errors(f'{self}/{name} cannot be removed'):
                self.storage.delete_file(f'{self.path}/{name}')

    def _write(self, path: str, content: bytes) -> None:
        with self.storage.open_output_stream(path, compression=None) as stream:
            stream.write(content)


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Make an OSError of what pyarrow raises, which says what failed."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        text, number = f'{what}: {error}', getattr(error, 'errno', None)
        raise (OSError(number, text) if number else OSError(text)) from error
