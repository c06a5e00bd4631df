"""Reads both file formats of ``torch.save`` without trusting what a file declares.

Since torch 1.6 a file is a zip: the pickle ``data.pkl`` and a member for each storage. Before, it
was a pickle followed by the storages. The size of the file bounds the memory of the storages.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from mmseg_repvgg.checkpoint.allowed_names import (
    DICTS,
    FROM_TYPE,
    LISTS,
    METHODS,
    NAMES,
    STAND_INS,
    Refused,
    Unbuilt,
    check_attributes,
    checked_keys,
    method,
    short,
)

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of the old format
Restore = Callable[[Any, str], Any]  # moves a storage to its device, given where it was saved
MOST_UNPACKED = 20
"""Contents may be this many times larger than the file; torch.save does not compress."""
SMALL = 2**20
"""Bytes that may be unpacked from a file of any size."""


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
    restore = torch.serialization._get_restore_location(map_location)
    with file.open('rb') as stream:
        is_zip = stream.read(4) == b'PK\x03\x04'
        stream.seek(0)
        return (_load_zip if is_zip else _load_old)(stream, restore)


def _load_zip(stream: BinaryIO, restore: Restore) -> Any:
    with zipfile.ZipFile(stream) as archive:
        members = {info.filename: info for info in archive.infolist()}
        size = os.fstat(stream.fileno()).st_size
        total = sum(info.file_size for info in archive.infolist())
        if total > MOST_UNPACKED * size + SMALL:
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
                content = _open_member(stream, archive, info)
                storages[key] = restore(_read_storage(content, nbytes, dtype, swapped), place)
            return _typed(storages[key], dtype)

        content = read('data.pkl')
        return Unpickler(io.BytesIO(content), len(content), load_storage).load()


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
    size = os.fstat(stream.fileno()).st_size

    def unpickle(load_storage: Callable[[Any], Any] | None = None) -> Any:
        bounded: Any = _BoundedStream(stream, size)
        return Unpickler(bounded, size, load_storage).load()

    if unpickle() != MAGIC:
        raise ValueError('it was not written by torch.save')
    version, system = unpickle(), unpickle()
    if version != PROTOCOL:
        raise ValueError(f'unknown protocol version {short(version)}')
    start = stream.tell()
    found: dict[str, tuple[torch.dtype, str, int]] = {}
    total = 0

    def note_storage(pid: tuple[Any, ...]) -> Any:
        nonlocal total
        dtype, key, place, count = _parse_pid(pid, 6)
        total += count * dtype.itemsize if key not in found else 0
        found.setdefault(key, (dtype, place, count))
        if total > size:
            raise CutShort(f'its tensors need {total} bytes, the file has {size}')
        return _typed(torch.UntypedStorage(count * dtype.itemsize, device='meta'), dtype)

    unpickle(note_storage)  # a first pass, to learn the storages
    swapped = system.get('little_endian', True) != (sys.byteorder == 'little')
    storages = {}
    for key in unpickle():
        dtype, place, count = found[key]
        if int.from_bytes(stream.read(8), 'little') != count:
            raise CutShort(f'storage {key} is not complete')
        storage = _read_storage(stream, count * dtype.itemsize, dtype, swapped)
        storages[key] = restore(storage, place)

    def load_storage(pid: tuple[Any, ...]) -> Any:
        dtype, key, _, _ = _parse_pid(pid, 6)
        view, storage = pid[5], storages[key]
        if view is not None:
            _, first, count = view
            storage = storage[first * dtype.itemsize : (first + count) * dtype.itemsize]
        return _typed(storage, dtype)

    stream.seek(start)
    return unpickle(load_storage)


class _BoundedStream:
    """A stream whose ``read`` never allocates more bytes than the file has."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size, self.readline = stream, size, stream.readline

    def read(self, count: int) -> bytes:
        return self.stream.read(min(count, self.size))


def _parse_pid(pid: tuple[Any, ...], length: int) -> tuple[torch.dtype, str, str, int]:
    """Return dtype, key, device and number of elements of a storage from its description."""
    if len(pid) != length or pid[0] != 'storage':
        raise Refused(f'the object {short(pid)} of another file')
    dtype, key, place, count = pid[1:5]
    if not (isinstance(dtype, torch.dtype) and type(key) is type(place) is str):
        raise Refused(f'a storage of type {short(dtype)}')
    if type(count) is not int or count < 0:
        raise ValueError(f'a storage of {short(count)} elements')
    return dtype, key, place, count


def _typed(storage: Any, dtype: torch.dtype) -> Any:
    return torch.storage.TypedStorage(wrap_storage=storage, dtype=dtype, _internal=True)


def _read_storage(stream: Any, nbytes: int, dtype: torch.dtype, swapped: bool) -> Any:
    """Read the bytes of a storage from a stream."""
    storage = torch.UntypedStorage(nbytes)
    if nbytes:
        values: Any = torch.empty(0, dtype=torch.uint8, device='cpu')
        view = memoryview(values.set_(storage).numpy())
        while view:
            count = stream.readinto(view)
            if not count:
                raise CutShort('the file ends within a tensor')
            view = view[count:]
    if swapped:
        storage.byteswap(dtype)
    return storage


class Memo(dict[int, Any]):
    """The objects that a pickle refers to by number."""

    def __getitem__(self, number: int) -> Any:
        found = super().__getitem__(number)
        return found.built if type(found) is Unbuilt and found.built is not None else found


class Unpickler(pickle._Unpickler):
    """Unpickles with :data:`NAMES` and what users added only.

    It extends pickle's Python version: the C version allocates 2**32 objects if the file says so.
    Names added with ``torch.serialization.add_safe_globals`` are used as they are, unless they are
    in ``NAMES``: a real ``getattr`` that another library added must not be used here.

    Args:
        stream: The file. ``read`` must not allocate more bytes than the file has.
        size: Bytes in the file. What the pickle may copy is bounded by it.
        load_storage: Returns the storage for its description in the pickle.
    """

    stack: list[Any]  # of the base class, which has no types
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(
        self, stream: BinaryIO, size: int, load_storage: Callable[[Any], Any] | None = None
    ) -> None:
        super().__init__(stream, encoding='utf-8')
        self.memo, self.load_storage = Memo(), load_storage
        self.copies_left = MOST_UNPACKED * size + SMALL
        self.names = dict(NAMES)
        self.calls = {id(NAMES[name]): call for name, call in STAND_INS.items()}
        self.calls[id(NAMES[FROM_TYPE])] = self._rebuild_from_type
        self.types: list[type] = []  # pickle itself sets the state of their instances
        for entry in torch.serialization.get_safe_globals():
            found, name = entry if isinstance(entry, tuple) else (entry, '')
            name = name or f'{found.__module__}.{found.__qualname__}'
            if name not in NAMES:
                self.names[name] = found
                self.calls.setdefault(id(found), found)
                self.types += [found] if isinstance(found, type) else []

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up; nothing is imported."""
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        full = f'{module}.{name}'
        owner, _, last = full.rpartition('.')
        if owner in METHODS:  # as protocol 4 writes them
            return method(NAMES[owner], last)
        if full not in self.names:
            raise Refused(full.removeprefix('builtins.'))
        return self.names[full]

    def persistent_load(self, pid: Any) -> Any:
        """Give a storage."""
        if self.load_storage is None or type(pid) is not tuple:
            raise Refused(f'the object {short(pid)} of another file')
        return self.load_storage(pid)

    def load_reduce(self) -> None:
        """Call an allowed function."""
        args, function = self.stack.pop(), self.stack[-1]
        call = self.calls.get(id(function))
        if call is None or type(args) is not tuple:
            raise Refused(f'a call of {short(function)}')
        self._count(args)
        self.stack[-1] = call(*args)

    def load_newobj(self) -> None:
        """Make an object of an allowed class."""
        function, args = self.stack[-2:]
        if isinstance(function, type) and function in self.types and type(args) is tuple:
            self.stack[-2:] = [function.__new__(function, *args)]
        else:
            self.load_reduce()

    def load_build(self) -> None:
        """Give an object its state."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Unbuilt:
            self._count(state.values() if isinstance(state, dict) else state)
            target.built = self.stack[-1] = target.build(state)
        elif type(target) is OrderedDict:  # a state dict: load_state_dict reads its _metadata
            if type(state) is dict and '_metadata' in state:
                vars(target)['_metadata'] = state['_metadata']
        elif type(target) in self.types:
            self.append(state)
            super().load_build()  # type: ignore[misc]
        else:
            raise Refused(f'a state for an object of type {type(target).__name__}')

    def load_append(self) -> None:
        """Append to a list."""
        self._extend([self.stack.pop()])

    def load_appends(self) -> None:
        """Append several objects to a list."""
        self._extend(self.pop_mark())

    def load_setitem(self) -> None:
        """Set an item of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        """Set several items of a dict."""
        self._fill(self.pop_mark())

    def load_additems(self) -> None:
        """Add objects to a set."""
        items = self.pop_mark()
        self._target((set,)).update(checked_keys(items))

    def load_frozenset(self) -> None:
        """Make a frozenset."""
        items = self.pop_mark()  # this changes self.append
        self.append(frozenset(checked_keys(items)))

    def load_bytearray8(self) -> None:
        """Read a bytearray; pickle's own method allocates it before reading."""
        length = int.from_bytes(self.read(8), 'little')
        self.append(bytearray(self.read(length)))

    def load_others(self) -> None:
        """Refuse instructions that torch.save never writes."""
        raise pickle.UnpicklingError('an unknown instruction in the pickle')

    def _extend(self, items: list[Any]) -> None:
        self._target(LISTS).extend(items)

    def _fill(self, items: list[Any]) -> None:
        target = self._target(DICTS)
        for key, value in zip(checked_keys(items[::2]), items[1::2], strict=True):
            target[key] = value

    def _target(self, kinds: tuple[type, ...]) -> Any:
        """Return the object on top of the stack, if it may get items."""
        target, kind = self.stack[-1], type(self.stack[-1])
        if kind not in kinds and not (kind in self.types and issubclass(kind, kinds)):
            raise Refused(f'items for an object of type {kind.__name__}')
        return target

    def _count(self, args: Iterable[Any]) -> None:
        """Bound what calls copy: a pickle may give one large argument to many."""
        for arg in args:
            if isinstance(arg, (str, bytes, bytearray, tuple, list, dict)):
                self.copies_left -= len(arg)
            elif isinstance(arg, np.ndarray):
                self.copies_left -= arg.nbytes
        if self.copies_left < 0:
            raise ValueError('its pickle unpacks to too much for its size')

    def _rebuild_from_type(self, function: Any, kind: Any, args: Any, state: Any) -> Any:
        """Stand for torch's function that makes tensors of a subclass or with attributes."""
        call = self.calls.get(id(function))
        if call is None:
            raise Refused(f'a call of {short(function)}')
        check_attributes(state)
        if not (isinstance(kind, type) and issubclass(kind, Tensor)):
            raise Refused(f'a tensor of type {short(kind)}')
        made = call(*args)
        return torch._tensor._rebuild_from_type_v2(lambda: made, kind, (), state)


OPERATIONS = (
    'proto frame stop mark pop pop_mark dup none true false binint binint1 binint2 long1 long4 '
    'binfloat binbytes short_binbytes binbytes8 binstring short_binstring binunicode '
    'short_binunicode binunicode8 tuple tuple1 tuple2 tuple3 empty_tuple empty_list '
    'empty_dictionary empty_set binget long_binget binput long_binput memoize global stack_global '
    'binpersid reduce newobj build append appends setitem setitems additems frozenset bytearray8'
)
"""Instructions of pickle protocols 2 to 5; none allocates memory for data that is not there."""
Unpickler.dispatch = defaultdict(lambda: Unpickler.load_others)  # type: ignore
for _code, _function in pickle._Unpickler.dispatch.items():
    if _function.__name__.removeprefix('load_') in OPERATIONS.split():
        Unpickler.dispatch[_code] = getattr(Unpickler, _function.__name__)
