"""Reads both file formats of ``torch.save`` without trusting the sizes that a file declares.

Since torch 1.6 a file is a zip: the pickle ``data.pkl`` and a member for each storage. Before, it
was a pickle followed by the storages. The size of the file bounds the memory of the storages.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mmseg_repvgg.checkpoint.allowed_names import allowed_names
from mmseg_repvgg.checkpoint.pickled import Allowed, Refused, Unpickler, resolve, short

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the old format
MOST_COMPRESSED = 20
"""A zip file may be this many times smaller than its contents; torch.save does not compress."""
SMALL = 2**20
"""Bytes that may be unpacked from a file of any size."""

Restore = Callable[[Any, str], Any]


class CutShort(ValueError):
    """The file ends before its contents do."""


def load(file: Path, map_location: Any) -> Any:
    """Read what ``torch.save`` wrote.

    Args:
        file: The file.
        map_location: As in :func:`torch.load`.

    Raises:
        Refused: If the pickle asks for what a checkpoint does not need.
        CutShort: If the file is not complete.
        Exception: Of many kinds, if the file is damaged or of another format.
    """
    restore = _restore_function(map_location)
    with file.open('rb') as stream:
        is_zip = stream.read(4) == b'PK\x03\x04'
        stream.seek(0)
        return resolve((_load_zip if is_zip else _load_old)(stream, restore))


def _restore_function(map_location: Any) -> Restore:
    """Return a function that moves a storage to its device, given the device it was saved from."""
    default = torch.serialization.default_restore_location
    if map_location is None:
        return default
    if isinstance(map_location, dict):
        return lambda storage, place: default(storage, map_location.get(place, place))
    if isinstance(map_location, str | torch.device):
        return lambda storage, _: default(storage, str(map_location))

    def restore(storage: Any, place: str) -> Any:
        moved = map_location(storage, place)
        return default(storage, place) if moved is None else moved

    return restore


def _load_zip(stream: BinaryIO, restore: Restore) -> Any:
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        size = os.fstat(stream.fileno()).st_size
        total = sum(info.file_size for info in archive.infolist())
        if total > MOST_COMPRESSED * size + SMALL:
            raise ValueError(f'{size} bytes unpack to {total}, too many for a checkpoint')
        root = next(name for name in members if name.endswith('data.pkl')).removesuffix('data.pkl')

        def read(name: str) -> bytes:
            info = members[root + name]
            content: bytes = _open_member(stream, archive, info).read(info.file_size)
            return content

        swapped = f'{root}byteorder' in members and read('byteorder').decode() != sys.byteorder
        storages: dict[str, Any] = {}

        def load_storage(pid: tuple[Any, ...]) -> Any:
            dtype, key, place, count = _parse_pid(pid, 5)
            info, nbytes = members[f'{root}data/{key}'], count * dtype.itemsize
            if info.file_size != nbytes:
                raise ValueError(f'storage {key} has {info.file_size} bytes instead of {nbytes}')
            if key not in storages:
                storage = torch.UntypedStorage(nbytes)
                _fill(storage, _open_member(stream, archive, info))
                if swapped:
                    storage.byteswap(dtype)
                storages[key] = restore(storage, place)
            return _wrap_storage(storages[key], dtype)

        return Unpickler(io.BytesIO(read('data.pkl')), *allowed_names(), load_storage).load()


def _open_member(stream: BinaryIO, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Any:
    """Open a member of a zip file at its first byte.

    Its checksum is ignored: ``torch.save`` may write a wrong one
    (``torch.serialization.set_crc32_options``).
    """
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.open(info)
    stream.seek(info.header_offset + 26)  # in the header: 30 bytes, the name, extra fields
    lengths = stream.read(4)
    start = 30 + int.from_bytes(lengths[:2], 'little') + int.from_bytes(lengths[2:], 'little')
    stream.seek(info.header_offset + start)
    return stream


def _load_old(stream: BinaryIO, restore: Restore) -> Any:
    names, size = allowed_names(), os.fstat(stream.fileno()).st_size
    bounded: Any = _BoundedStream(stream, size)
    if Unpickler(bounded, *names).load() != MAGIC:
        raise ValueError('it was not written by torch.save')
    version, system = (Unpickler(bounded, *names).load() for _ in range(2))
    if version != PROTOCOL:
        raise ValueError(f'unknown protocol version {short(version)}')
    start = stream.tell()
    found: dict[str, tuple[torch.dtype, str, int]] = {}

    def note_storage(pid: tuple[Any, ...]) -> Any:
        dtype, key, place, count = _parse_pid(pid, 6)
        found.setdefault(key, (dtype, place, count))
        total = sum(count * dtype.itemsize for dtype, _, count in found.values())
        if total > size:
            raise CutShort(f'its tensors need {total} bytes, the file has {size}')
        return _wrap_storage(torch.UntypedStorage(count * dtype.itemsize, device='meta'), dtype)

    Unpickler(bounded, *names, note_storage).load()  # a first pass, to learn the storages
    storages = {}
    for key in Unpickler(bounded, *names).load():
        dtype, place, count = found[key]
        if int.from_bytes(stream.read(8), 'little') != count:
            raise CutShort(f'storage {key} is not complete')
        storage = torch.UntypedStorage(count * dtype.itemsize)
        _fill(storage, stream)
        if system.get('little_endian', True) != (sys.byteorder == 'little'):
            storage.byteswap(dtype)
        storages[key] = restore(storage, place)

    def load_storage(pid: tuple[Any, ...]) -> Any:
        dtype, key, _, _ = _parse_pid(pid, 6)
        view, storage = pid[5], storages[key]
        if view is not None:
            _, first, count = view
            storage = storage[first * dtype.itemsize : (first + count) * dtype.itemsize]
        return _wrap_storage(storage, dtype)

    stream.seek(start)
    return Unpickler(bounded, *names, load_storage).load()


class _BoundedStream:
    """A stream whose ``read`` never allocates more bytes than the file has."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size, self.readline = stream, size, stream.readline

    def read(self, count: int) -> bytes:
        return self.stream.read(min(count, self.size))


def _parse_pid(pid: tuple[Any, ...], length: int) -> Iterator[Any]:
    """Return dtype, key, device and number of elements of a storage from its description."""
    if len(pid) != length or pid[0] != 'storage' or type(pid[1]) is not Allowed:
        raise Refused(f'the object {short(pid)} of another file')
    dtype, key, place, count = pid[1].value, *pid[2:5]
    if not (isinstance(dtype, torch.dtype) and type(key) is type(place) is str):
        raise Refused(f'a storage of type {pid[1].name}')
    if type(count) is not int or count < 0:
        raise ValueError(f'a storage of {short(count)} elements')
    return iter((dtype, key, place, count))


def _wrap_storage(storage: Any, dtype: torch.dtype) -> Any:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _fill(storage: torch.UntypedStorage, stream: Any) -> None:
    """Read the bytes of a storage from a stream."""
    if storage.nbytes():
        bytes_of = torch.empty(0, dtype=torch.uint8, device='cpu').set_(storage)  # type: ignore[call-overload]
        array: Any = bytes_of.numpy()
        view = memoryview(array)
        while view:
            count = stream.readinto(view)
            if not count:
                raise CutShort('the file ends within a tensor')
            view = view[count:]
