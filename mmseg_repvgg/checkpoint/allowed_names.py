"""The names that a checkpoint may mention, and the function that a call of each runs.

Each function here checks its arguments, because they come from the file; see
:mod:`mmseg_repvgg.checkpoint.pickled`.
"""

from __future__ import annotations

import datetime
import math
import pathlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmseg_repvgg.checkpoint.pickled import Allowed, Refused, checked_keys, short
from mmseg_repvgg.checkpoint.placeholders import (
    HISTORY,
    METHODS,
    NDARRAY,
    ONE_CYCLE,
    Array,
    ConfigDict,
    Dtype,
    History,
    Method,
    array_from_buffer,
    make_scalar,
)

LARGEST_EXPANDED = 2**20
"""Bytes that a tensor with a stride of 0 may seem to have if its storage has fewer."""


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
    pairs = [_list(pair) for pair in _list(items)]
    return dict(zip(checked_keys(key for key, _ in pairs), (v for _, v in pairs), strict=True))


def _defaultdict(factory: object = None) -> defaultdict[Any, Any]:
    value = factory.value if type(factory) is Allowed else factory
    if value is not None and value not in PLAIN_TYPES:
        raise Refused(f'a defaultdict of {short(factory)}')
    return defaultdict(value)


def _path(kind: str) -> Callable[..., pathlib.PurePath]:
    """Stand for a path class; paths of another operating system become pure paths."""

    def path(*parts: object) -> pathlib.PurePath:
        if not all(type(part) is str for part in parts):
            raise Refused('a path with parts that are not str')
        pure = pathlib.PureWindowsPath if 'Windows' in kind else pathlib.PurePosixPath
        here = type(pathlib.Path())
        made = here if 'Pure' not in kind and issubclass(here, pure) else pure
        return made(*parts)  # type: ignore[arg-type]

    return path


def _accept_only(*kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let a class be called with arguments of these types only."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: object) -> Any:
            if not all(isinstance(arg, kinds) for arg in args):
                raise Refused(f'{function.__name__} of {[type(arg).__name__ for arg in args]}')
            return function(*args)

        return call

    return wrap


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


def _rebuild(name: str) -> Allowed:
    real = getattr(torch._utils, name)

    def rebuild(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
        dtype = rest[2] if name == '_rebuild_tensor_v3' else getattr(storage, 'dtype', None)
        _check_fits(storage, dtype, offset, size, stride)
        return real(storage, offset, size, stride, *rest)

    return Allowed(f'torch._utils.{name}', rebuild)


def _rebuild_sparse(layout: Any, data: Any) -> Tensor:
    check = not data[0].is_meta  # meta tensors have no indices to check
    if layout is torch.sparse_coo:
        return torch.sparse_coo_tensor(*data[:3], check_invariants=check)
    return torch.sparse_compressed_tensor(*data[:4], layout=layout, check_invariants=check)


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """Stand for torch's function that makes tensors of a subclass or with attributes."""
    if type(function) is not Allowed or function.call is None:
        raise Refused(f'a call of {short(function)}')
    parts = state if type(state) is tuple else (state,)
    names = [name for part in parts for name in part or ()]
    if any(type(name) is not str or name.startswith('__') for name in names):
        raise Refused('a tensor with attributes that are not plain')
    subclass = kind.value if type(kind) is Allowed else None
    if not (isinstance(subclass, type) and issubclass(subclass, Tensor)):
        raise Refused(f'a tensor of type {short(kind)}')
    made = function.call(*args)
    return torch._tensor._rebuild_from_type_v2(lambda: made, subclass, (), state)


PLAIN_TYPES = (list, dict, set, tuple, int, float, bool, str, bytes, complex, OrderedDict)


def _names() -> dict[str, Any]:
    """Return all names. PyTorch's constants, such as dtypes, stand for themselves."""
    calls: dict[str, Any] = {
        '_codecs.encode': _encode,
        'builtins.bytearray': lambda *args: bytearray(_encode(*args)),
        'builtins.bytes': _encode,
        'builtins.complex': _accept_only(int, float)(complex),
        'builtins.frozenset': lambda items=(): frozenset(checked_keys(_list(items))),
        'builtins.getattr': Method,
        'builtins.range': _accept_only(int)(range),
        'builtins.xrange': _accept_only(int)(range),  # as protocol 2 writes it
        'builtins.set': lambda items=(): set(checked_keys(_list(items))),
        'builtins.slice': _accept_only(int, type(None))(slice),
        'collections.Counter': lambda items=(): Counter(_dict(items)),
        'collections.OrderedDict': lambda items=(): OrderedDict(_dict(items)),
        'collections.defaultdict': _defaultdict,
        'collections.deque': lambda items=(), most=None: deque(_list(items), most),
        'mmengine.config.config.ConfigDict': ConfigDict,
        HISTORY: History,
        'numpy.dtype': Dtype,
        'torch.Size': lambda size=(): torch.Size(_list(size)),
        'torch.device': _accept_only(str, int)(torch.device),
        'torch.serialization._get_layout': _accept_only(str)(torch.serialization._get_layout),
        'torch._tensor._rebuild_from_type_v2': _rebuild_from_type,
        'torch._utils._rebuild_sparse_tensor': _rebuild_sparse,
    }
    for name in ('date', 'datetime', 'time', 'timedelta', 'timezone'):
        kinds = (bytes, int, str, datetime.timedelta, datetime.tzinfo)
        calls[f'datetime.{name}'] = _accept_only(*kinds)(getattr(datetime, name))
    for name in ('Path', 'PosixPath', 'WindowsPath', 'PurePosixPath', 'PureWindowsPath'):
        calls[f'pathlib.{name}'] = calls[f'pathlib._local.{name}'] = _path(name)
    for package in ('numpy.core', 'numpy._core'):  # of numpy 1 and 2; each numpy reads both
        calls[f'{package}.multiarray._reconstruct'] = Array
        calls[f'{package}.numeric._frombuffer'] = array_from_buffer
        calls[f'{package}.multiarray.scalar'] = make_scalar
    for name in ('_rebuild_parameter', '_rebuild_parameter_with_state'):
        calls[f'torch._utils.{name}'] = getattr(torch._utils, name)
    meta = '_rebuild_meta_tensor_no_storage'
    calls[f'torch._utils.{meta}'] = getattr(torch._utils, meta)
    names: dict[str, Any] = {name: Allowed(name, call) for name, call in calls.items()}
    for kind in PLAIN_TYPES:
        full = f'{kind.__module__}.{kind.__name__}'
        names[full] = Allowed(full, calls.get(full), kind)
    parameter = 'torch.nn.parameter.Parameter'
    names[parameter] = Allowed(parameter, None, nn.Parameter)
    names['torch.Tensor'] = names['torch._tensor.Tensor'] = Allowed('torch.Tensor', None, Tensor)
    names[NDARRAY.name] = NDARRAY
    names[ONE_CYCLE] = Allowed(ONE_CYCLE)
    for owner, methods in METHODS.items():  # as protocol 4 writes them
        names |= {f'{owner}.{name}': Method(names[owner], name) for name in methods}
    for function in ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3'):
        names[f'torch._utils.{function}'] = _rebuild(function)
    names['torch._utils._rebuild_qtensor'] = _rebuild('_rebuild_qtensor')
    constants = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
    names |= {f'torch.{n}': v for n, v in vars(torch).items() if isinstance(v, constants)}
    for name, kind in vars(np).items():
        if isinstance(kind, type) and issubclass(kind, np.generic):
            names[f'numpy.{name}'] = Allowed(f'numpy.{name}', None, kind)
    for name, dtype in STORAGES.items():
        for module in ('torch', 'torch.cuda', 'torch.storage'):
            names[f'{module}.{name}'] = Allowed(name, None, dtype)
    return names


STORAGES = {
    'BFloat16Storage': torch.bfloat16,
    'BoolStorage': torch.bool,
    'ByteStorage': torch.uint8,
    'CharStorage': torch.int8,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'IntStorage': torch.int32,
    'LongStorage': torch.int64,
    'QInt32Storage': torch.qint32,
    'QInt8Storage': torch.qint8,
    'QUInt2x4Storage': torch.quint2x4,
    'QUInt4x2Storage': torch.quint4x2,
    'QUInt8Storage': torch.quint8,
    'ShortStorage': torch.int16,
    'UntypedStorage': torch.uint8,
}
"""The dtype of a storage by the name of its class."""

NAMES = _names()


def allowed_names() -> tuple[dict[str, Any], tuple[type, ...]]:
    """Return the names that are allowed now, and the classes among those that users added.

    Names added with ``torch.serialization.add_safe_globals`` are allowed as they are, unless they
    are in ``NAMES``: a real ``getattr`` that another library added must not be used here.
    """
    names, types = dict(NAMES), []
    for entry in torch.serialization.get_safe_globals():
        found, name = entry if isinstance(entry, tuple) else (entry, '')
        name = name or f'{found.__module__}.{found.__qualname__}'
        if name not in NAMES:
            names[name] = Allowed(name, found, found)
            if isinstance(found, type):
                types.append(found)
    return names, tuple(types)
