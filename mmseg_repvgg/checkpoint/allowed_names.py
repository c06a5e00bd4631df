"""The names that the pickle in a checkpoint may mention, and what a call of each runs.

mmengine's training checkpoints hold more than tensors: ``HistoryBuffer`` objects, numpy arrays and
scalars in the message hub, a function in the state of ``OneCycleLR``, a ``ConfigDict`` in the meta
information. Allowing the real functions and classes is not safe:

* with the real ``getattr``, which pickle protocol 2 uses to write ``HistoryBuffer.min``, a pickle
  can get from ``HistoryBuffer.__init__.__globals__`` to ``os.system`` (torch's own
  ``_rebuild_from_type_v2`` then calls it);
* ``numpy.dtype.__setstate__`` trusts the flags in the file, so a pickle can make numpy follow
  pointers made of bytes from the file: a crash, or worse;
* ``bytearray(10**12)`` and a tensor larger than its storage take all memory.

So the file can only mention the names in :data:`NAMES`, and a call of one runs its function in
:data:`STAND_INS`, which checks the arguments. PyTorch's list of safe names is read, never changed:
other threads may use ``torch.load`` at the same time.
"""

from __future__ import annotations

import datetime
import importlib
import math
import pathlib
import reprlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# dtype kinds whose bytes are values: bool, integers, floats, complex, bytes, str. Not 'O'
# (pointers), not 'V' (may contain 'O').
PLAIN_KINDS = 'biufcSU'
PLAIN_TYPES = (list, dict, set, tuple, int, float, bool, str, bytes, complex, OrderedDict)
DICTS, LISTS = (dict, OrderedDict, Counter, defaultdict), (list, deque)
# Types of dict keys and set items: hashing them takes no longer than reading them.
KEYS = (
    str, int, float, bool, complex, bytes, type(None), np.generic, pathlib.PurePath,
    datetime.date, datetime.time, datetime.timedelta, torch.dtype, torch.device,
)  # fmt: skip
MOST_PARTS_OF_A_KEY = 1000
LARGEST_EXPANDED = 2**20
"""Bytes that a tensor with a stride of 0 may seem to have if its storage has fewer."""

HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
METHODS = {
    HISTORY: ('min', 'max', 'mean', 'current'),  # its default statistics
    ONE_CYCLE: ('_annealing_cos', '_annealing_linear'),
}
"""The methods that objects of mmengine store, by class."""


class Refused(Exception):
    """The pickle asks for something that a checkpoint does not need; the text says what."""


@dataclass(frozen=True, eq=False)
class Function:
    """What a pickle gets for the name of a function: nothing that could be called elsewhere."""

    name: str


@dataclass(eq=False)
class Unbuilt:
    """An object that gets its state later; what ``build`` makes of that then replaces it."""

    build: Callable[[Any], Any]
    built: Any = None


def short(value: Any) -> str:
    """Format a value from a file for a message; deeply nested values stay short too."""
    return value.name if type(value) is Function else reprlib.repr(value)


def checked_keys(keys: Iterable[Any]) -> Iterator[Any]:
    """Yield keys, and refuse those that may take forever to hash, such as deeply nested tuples.

    Raises:
        Refused: On such a key; the message names the type.
    """
    for key in keys:
        rest, count = [key], 0
        while rest:
            part, count = rest.pop(), count + 1
            if type(part) is tuple and count + len(part) < MOST_PARTS_OF_A_KEY:
                rest.extend(part)
            elif not isinstance(part, KEYS):
                raise Refused(f'a key of type {type(part).__name__}')
        yield key


# Stand-ins for classes and functions: each checks its arguments, which come from the file.


def _of_mmengine(module: str, name: str, otherwise: Any) -> Any:
    try:
        return getattr(importlib.import_module(f'mmengine.{module}'), name)
    except ImportError:
        return otherwise


def _encode(text: object = '', encoding: object = 'latin1') -> bytes:
    """Stand for ``codecs.encode`` and ``bytes``, which protocol 2 uses for bytes."""
    if type(text) is bytes:
        return text
    if type(text) is not str or encoding not in ('latin1', 'latin-1'):
        raise Refused(f'bytes of {type(text).__name__}')
    return text.encode('latin1')


def _list(items: object = ()) -> list[Any]:
    if type(items) not in (list, tuple):
        raise Refused(f'a list of {type(items).__name__}')
    return list(items)  # type: ignore[call-overload]


def _dict(items: object = ()) -> dict[Any, Any]:
    if isinstance(items, dict):
        return items
    pairs = [(key, value) for key, value in _list(items)]
    return dict(zip(checked_keys(key for key, _ in pairs), (v for _, v in pairs), strict=True))


def _defaultdict(factory: object = None) -> defaultdict[Any, Any]:
    if factory is not None and not any(factory is kind for kind in PLAIN_TYPES):
        raise Refused(f'a defaultdict of {short(factory)}')
    return defaultdict(factory)  # type: ignore[call-overload]


def _config_dict(items: Any = None) -> Any:
    if items is not None and type(items) is not dict:
        raise Refused(f'a ConfigDict of {type(items).__name__}')
    config = _of_mmengine('config', 'ConfigDict', dict)()
    dict.update(config, items or {})  # its own walks through all that is in them
    return config


def _path(kind: str) -> Callable[..., pathlib.PurePath]:
    """Stand for a path class; paths of another operating system become pure paths."""
    pure = pathlib.PureWindowsPath if 'Windows' in kind else pathlib.PurePosixPath
    here = type(pathlib.Path())
    made = here if 'Pure' not in kind and issubclass(here, pure) else pure
    return _accept_only(made, str)


def _accept_only(function: Callable[..., Any], *kinds: type) -> Callable[..., Any]:
    """Let a function be called with arguments of these types only."""

    def call(*args: object) -> Any:
        if not all(isinstance(arg, kinds) for arg in args):
            raise Refused(f'{function.__name__} of {[type(arg).__name__ for arg in args]}')
        return function(*args)

    return call


def method(owner: object, name: object) -> Any:
    """Stand for ``getattr``, only for :data:`METHODS`.

    Returns:
        The function that OneCycleLR calls; for a history, which has its own, the name.
    """
    full = owner.name if type(owner) is Function else ''
    if type(name) is not str or name not in METHODS.get(full, ()):
        raise Refused(f'builtins.getattr(..., {short(name)})')
    if full == HISTORY:
        return name
    return getattr(_of_mmengine('optim.scheduler', 'OneCycleParamScheduler', None), name, name)


def _history() -> Unbuilt:
    """Stand for mmengine's ``HistoryBuffer``; without mmengine it becomes a dict."""

    def build(state: Any) -> Any:
        logs = {name: state[f'_{name}'] for name in ('log_history', 'count_history')}
        if not all(type(log) is np.ndarray for log in logs.values()):
            raise Refused('a history that is not an array')
        buffer = _of_mmengine('logging', 'HistoryBuffer', dict)
        return buffer(**logs, max_length=int(state['max_length']))

    return Unbuilt(build)


# numpy: plain numbers and strings only.


def _dtype(spec: object, *_align_and_copy: object) -> Unbuilt:
    dtype = np.dtype(spec) if type(spec) is str else None
    if dtype is None or dtype.kind not in PLAIN_KINDS or dtype.itemsize == 0:
        raise Refused(f'numpy.dtype({short(spec)})')
    return Unbuilt(lambda state: dtype.newbyteorder(state[1]))  # the rest follows from the kind


def _empty_array(kind: object, *_shape_and_typecode: object) -> Unbuilt:
    if kind is not np.ndarray:
        raise Refused(f'an array of {short(kind)}')
    return Unbuilt(lambda state: _array(state[4], state[2], state[1], 'F' if state[3] else 'C'))


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Stand for numpy's ``_frombuffer``, which protocol 5 uses."""
    _check_plain_bytes(data, dtype)
    if order not in ('C', 'F') or not all(type(length) is int for length in shape):
        raise Refused(f'an array of shape {short(shape)} in the order {short(order)}')
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f'{len(data)} bytes for an array of shape {short(shape)}, {dtype}')
    return np.ndarray(shape, dtype, bytes(data), order=order).copy('A')


def _scalar(dtype: Any, data: Any) -> Any:
    _check_plain_bytes(data, dtype)
    if len(data) != dtype.itemsize:
        raise ValueError(f'{len(data)} bytes for a number of type {dtype}')
    return np.frombuffer(data, dtype)[0]


def _check_plain_bytes(data: object, dtype: object) -> None:
    if not isinstance(dtype, np.dtype) or type(data) not in (bytes, bytearray):
        raise Refused('numpy objects that are not plain numbers')


# Tensors. torch would enlarge a storage that is too small for its tensor.


def _check_fits(storage: Any, dtype: Any, offset: int, size: Any, stride: Any) -> None:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise Refused('a tensor without a storage')
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
        raise ValueError(f'a tensor of size {short(size)} and stride {short(stride)}')
    if 0 in size:
        return
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    count = storage._untyped_storage.nbytes() // dtype.itemsize
    if last >= count or math.prod(size) > max(count, LARGEST_EXPANDED // dtype.itemsize):
        raise ValueError(f'a tensor of size {short(size)} from a storage of {count} numbers')


def _rebuild(name: str) -> Callable[..., Any]:
    real = getattr(torch._utils, name)

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        if name == '_rebuild_qtensor' and any(type(part) is list for part in rest[0]):
            raise Refused('a quantized tensor that is not made of tensors')
        dtype = rest[2] if name == '_rebuild_tensor_v3' else getattr(storage, 'dtype', None)
        _check_fits(storage, dtype, offset, size, stride)
        return real(storage, offset, size, stride, *rest)

    return rebuild


def _rebuild_sparse(layout: Any, data: Any) -> Tensor:
    is_coo = layout is torch.sparse_coo
    if not all(isinstance(part, Tensor) for part in data[: 2 if is_coo else 3]):
        raise Refused('a sparse tensor that is not made of tensors')
    check = not data[0].is_meta  # meta tensors have no indices to check
    if is_coo:
        return torch.sparse_coo_tensor(*data[:3], check_invariants=check)
    return torch.sparse_compressed_tensor(*data[:4], layout=layout, check_invariants=check)


def _rebuild_parameter(data: Any, requires_grad: Any, hooks: Any, state: Any) -> Any:
    check_attributes(state)
    return torch._utils._rebuild_parameter_with_state(data, requires_grad, hooks, state)


def check_attributes(state: Any) -> None:
    """Refuse special attributes in the state of a tensor: a dict, or one and another for slots."""
    names = [n for part in (state if type(state) is tuple else (state,)) for n in part or ()]
    if any(type(name) is not str or name.startswith('__') for name in names):
        raise Refused('a tensor with attributes that are not plain')


# The names that a pickle may mention.

STAND_INS: dict[str, Callable[..., Any]] = {
    '_codecs.encode': _encode,
    'builtins.bytearray': lambda *args: bytearray(_encode(*args)),
    'builtins.bytes': _encode,
    'builtins.complex': _accept_only(complex, int, float),
    'builtins.frozenset': lambda items=(): frozenset(checked_keys(_list(items))),
    'builtins.getattr': method,
    'builtins.range': _accept_only(range, int),
    'builtins.xrange': _accept_only(range, int),  # as protocol 2 writes it
    'builtins.set': lambda items=(): set(checked_keys(_list(items))),
    'builtins.slice': _accept_only(slice, int, type(None)),
    'collections.Counter': lambda items=(): Counter(_dict(items)),
    'collections.OrderedDict': lambda items=(): OrderedDict(_dict(items)),
    'collections.defaultdict': _defaultdict,
    'collections.deque': lambda items=(), most=None: deque(_list(items), most),
    'mmengine.config.config.ConfigDict': _config_dict,
    HISTORY: _history,
    'numpy.dtype': _dtype,
    'torch.Size': lambda size=(): torch.Size(_list(size)),
    'torch.device': _accept_only(torch.device, str, int),
    'torch.serialization._get_layout': _accept_only(torch.serialization._get_layout, str),
    'torch._utils._rebuild_sparse_tensor': _rebuild_sparse,
    'torch._utils._rebuild_parameter': torch._utils._rebuild_parameter,
    'torch._utils._rebuild_parameter_with_state': _rebuild_parameter,
    'torch._utils._rebuild_meta_tensor_no_storage': torch._utils._rebuild_meta_tensor_no_storage,
}
"""The function that a call runs, by name."""
for _name in ('date', 'datetime', 'time', 'timedelta', 'timezone'):
    _kinds = (bytes, int, str, datetime.timedelta, datetime.tzinfo)
    STAND_INS[f'datetime.{_name}'] = _accept_only(getattr(datetime, _name), *_kinds)
for _name in ('Path', 'PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath'):
    STAND_INS[f'pathlib.{_name}'] = STAND_INS[f'pathlib._local.{_name}'] = _path(_name)
for _name in ('numpy.core', 'numpy._core'):  # of numpy 1 and 2; each numpy reads both
    STAND_INS[f'{_name}.multiarray._reconstruct'] = _empty_array
    STAND_INS[f'{_name}.numeric._frombuffer'] = _array
    STAND_INS[f'{_name}.multiarray.scalar'] = _scalar
for _name in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3', '_rebuild_qtensor'):
    STAND_INS[f'torch._utils.{_name}'] = _rebuild(_name)

FROM_TYPE = 'torch._tensor._rebuild_from_type_v2'
CONSTANTS = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
STORAGES = {name: dtype for dtype, name in torch.storage._dtype_to_storage_type_map().items()} | {
    'UntypedStorage': torch.uint8
}
"""The dtype of a storage by the name of its class."""

NAMES: dict[str, Any] = {
    **{name: Function(name) for name in (*STAND_INS, FROM_TYPE, ONE_CYCLE)},
    **{f'{kind.__module__}.{kind.__name__}': kind for kind in PLAIN_TYPES},
    **{f'torch.{name}': value for name, value in vars(torch).items() if type(value) in CONSTANTS},
    **{
        f'numpy.{name}': kind
        for name, kind in vars(np).items()
        if isinstance(kind, type) and issubclass(kind, np.generic)
    },
    **{
        f'{module}.{name}': dtype
        for module in ('torch', 'torch.cuda', 'torch.storage')
        for name, dtype in STORAGES.items()
    },
    'numpy.ndarray': np.ndarray,
    'torch.Tensor': Tensor,
    'torch._tensor.Tensor': Tensor,
    'torch.nn.parameter.Parameter': nn.Parameter,
}
"""What a pickle gets for a name: a :class:`Function`, a plain type, or one of torch's constants."""
