"""What a pickle inside a checkpoint may name, and what it gets instead.

mmengine's training checkpoints hold more than tensors: the message hub has ``HistoryBuffer``
objects, numpy arrays and scalars, and ``HistoryBuffer.min`` and its like, which pickle protocol 2
writes as a call of ``getattr``. Allowing those names as they are is not safe:

* with the real ``getattr`` a pickle walks from ``HistoryBuffer.__init__.__globals__`` to
  ``os.system`` (torch's own ``_rebuild_from_type_v2`` then calls whatever it found);
* ``numpy.dtype.__setstate__`` believes the flags in the file, so a pickle can have numpy follow
  pointers made of bytes in the file: a crash, or worse.

So the unpickler of ``torch.load(weights_only=True)`` is given stand-ins under those names. They
only store what they are handed after checking it; ``resolve`` makes the real objects at the end.
"""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

# The kinds whose bytes are values: bool, integers, floats, complex, bytes, str. Not 'O' (pointers),
# not 'V' (may contain 'O').
_PLAIN_KINDS = 'biufcSU'
_STATISTICS = ('min', 'max', 'mean', 'current')  # the default methods of mmengine's HistoryBuffer
_LOCK = threading.Lock()

# The first version that takes (object, name) pairs. Before 2.6 only plain weights can be read.
CAN_STAND_IN = torch.__version__ >= '2.6'


class Refused(Exception):
    """A stand-in was asked for something a checkpoint does not need; the text says what."""


class _Dtype:
    """Stands for ``numpy.dtype``: plain numbers and strings only."""

    __slots__ = ('numpy',)

    def __init__(self, spec: object, *_align_and_copy: object) -> None:
        dtype = np.dtype(spec) if type(spec) is str else None
        if dtype is None or dtype.kind not in _PLAIN_KINDS or dtype.itemsize == 0:
            raise Refused(f'numpy.dtype({spec!r})')
        self.numpy = dtype

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, ...). The rest is fixed by the kind and is not taken from the file.
        self.numpy = self.numpy.newbyteorder(state[1])


class _Array:
    """Stands for ``numpy.ndarray``."""

    __slots__ = ('numpy',)

    def __init__(self) -> None:
        self.numpy = np.empty(0)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if type(dtype) is not _Dtype or type(data) is not bytes:
            raise Refused('numpy.ndarray of objects')
        if math.prod(shape) * dtype.numpy.itemsize != len(data):
            raise ValueError(f'{len(data)} bytes for an array of shape {shape}, {dtype.numpy}')
        view = np.ndarray(shape, dtype.numpy, data, order='F' if fortran else 'C')
        self.numpy = view.copy('A')


class _History:
    """Stands for ``mmengine.logging.HistoryBuffer``."""

    __slots__ = ('state',)

    def __init__(self) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _reconstruct(kind: object, *_shape_and_typecode: object) -> _Array:
    """Stand for numpy's ``_reconstruct``, which makes an empty array to be filled."""
    if kind is not _Array:
        raise Refused(f'an array of type {kind!r}')
    return _Array()


def _scalar(dtype: object, data: object) -> np.generic:
    """Stand for numpy's ``scalar``."""
    if type(dtype) is not _Dtype or type(data) is not bytes:
        raise Refused('numpy scalar of an object')
    if len(data) != dtype.numpy.itemsize:
        raise ValueError(f'{len(data)} bytes for a number of type {dtype.numpy}')
    return np.frombuffer(data, dtype.numpy)[0]


def _bytes() -> bytes:
    """Stand for ``bytes``, which protocol 2 calls without arguments for empty data."""
    return b''


def _getattr(owner: object, name: object) -> str:
    """Stand for ``getattr``: the names of the statistics of a ``HistoryBuffer``, nothing else.

    The real buffer has these methods already, so not even they are looked up.
    """
    if owner is not _History or name not in _STATISTICS:
        raise Refused(f'builtins.getattr(..., {name!r})')
    return str(name)


# numpy 1 writes numpy.core, numpy 2 numpy._core; both are read under both.
_STAND_INS: dict[str, Any] = {
    'builtins.bytes': _bytes,
    'builtins.getattr': _getattr,
    'mmengine.logging.history_buffer.HistoryBuffer': _History,
    'numpy.dtype': _Dtype,
    'numpy.ndarray': _Array,
    'numpy.core.multiarray._reconstruct': _reconstruct,
    'numpy._core.multiarray._reconstruct': _reconstruct,
    'numpy.core.multiarray.scalar': _scalar,
    'numpy._core.multiarray.scalar': _scalar,
}


def _name(entry: Any) -> str:
    return entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'


@contextmanager
def stand_ins() -> Iterator[None]:
    """Give ``torch.load`` the stand-ins, and its own list back afterwards.

    What the user has added to torch's list stays allowed, except under the names above: a real
    ``getattr`` added for another library must not act here.
    """
    if not CAN_STAND_IN:
        yield
        return
    lists = torch.serialization
    with _LOCK:
        before = lists.get_safe_globals()
        lists.clear_safe_globals()
        try:
            lists.add_safe_globals([entry for entry in before if _name(entry) not in _STAND_INS])
            lists.add_safe_globals([(stand_in, name) for name, stand_in in _STAND_INS.items()])
            yield
        finally:
            lists.clear_safe_globals()
            lists.add_safe_globals(before)


def resolve(node: Any, done: dict[int, Any] | None = None) -> Any:
    """Replace every stand-in in a tree of dicts, lists and tuples by the real object.

    Dicts and lists are changed in place; what occurs twice stays one object.
    """
    done = {} if done is None else done
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, dict):
        done[id(node)] = node
        for key in node:  # not update(): that of a Counter adds
            node[key] = resolve(node[key], done)
    elif isinstance(node, list):
        done[id(node)] = node
        node[:] = [resolve(value, done) for value in node]
    elif type(node) is tuple:
        values = tuple(resolve(value, done) for value in node)
        same = all(new is old for new, old in zip(values, node, strict=True))
        done[id(node)] = node if same else values
    elif isinstance(node, _Array | _Dtype):
        return node.numpy
    elif isinstance(node, _History):
        done[id(node)] = _history_buffer(node.state)
    return done.get(id(node), node)


def _history_buffer(state: Any) -> Any:
    """Make mmengine's ``HistoryBuffer``, or without mmengine a dict of the same contents."""
    contents = {
        'log_history': resolve(state['_log_history']),
        'count_history': resolve(state['_count_history']),
        'max_length': int(state['max_length']),
    }
    try:
        from mmengine.logging import HistoryBuffer
    except ImportError:
        return contents
    return HistoryBuffer(**contents)
