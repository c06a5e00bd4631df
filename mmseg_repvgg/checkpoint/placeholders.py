"""Placeholders for objects of numpy and mmengine while a checkpoint is unpickled.

Each accepts only plain data from the file; see :mod:`mmseg_repvgg.checkpoint.pickled`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mmseg_repvgg.checkpoint.pickled import Allowed, Placeholder, Refused, short

# dtype kinds whose bytes are values: bool, integers, floats, complex, bytes, str. Not 'O'
# (pointers), not 'V' (may contain 'O').
PLAIN_KINDS = 'biufcSU'
HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'
METHODS = {
    HISTORY: ('min', 'max', 'mean', 'current'),  # its default statistics
    ONE_CYCLE: ('_annealing_cos', '_annealing_linear'),
}
"""The methods that objects of mmengine store, by class."""
NDARRAY = Allowed('numpy.ndarray', None, np.ndarray)


class Dtype(Placeholder):
    """Stands for ``numpy.dtype``: plain numbers and strings only."""

    __slots__ = ('numpy',)

    def __init__(self, spec: object, *_align_and_copy: object) -> None:
        dtype = np.dtype(spec) if type(spec) is str else None
        if dtype is None or dtype.kind not in PLAIN_KINDS or dtype.itemsize == 0:
            raise Refused(f'numpy.dtype({short(spec)})')
        self.numpy = dtype

    def set_state(self, state: Any) -> None:
        """Take the byte order. The rest follows from the kind and is not taken from the file."""
        self.numpy = self.numpy.newbyteorder(state[1])

    def make(self, resolve_part: Callable[[Any], Any]) -> Any:
        """Give numpy's dtype."""
        return self.numpy


class Array(Placeholder):
    """Stands for ``numpy.ndarray``."""

    __slots__ = ('numpy',)

    def __init__(self, kind: object, *_shape_and_typecode: object) -> None:
        if kind is not NDARRAY:
            raise Refused(f'an array of {short(kind)}')
        self.numpy = np.empty(0)

    def set_state(self, state: Any) -> None:
        """Take shape, dtype and bytes."""
        _, shape, dtype, fortran, data = state
        if type(dtype) is not Dtype or type(data) is not bytes:
            raise Refused('numpy.ndarray of objects')
        if not all(type(length) is int for length in shape):
            raise Refused(f'an array of shape {short(shape)}')
        if math.prod(shape) * dtype.numpy.itemsize != len(data):
            raise ValueError(f'{len(data)} bytes for an array of shape {shape}, {dtype.numpy}')
        view = np.ndarray(shape, dtype.numpy, data, order='F' if fortran else 'C')
        self.numpy = view.copy('A')

    def make(self, resolve_part: Callable[[Any], Any]) -> Any:
        """Give the array."""
        return self.numpy


class History(Placeholder):
    """Stands for ``mmengine.logging.HistoryBuffer``."""

    __slots__ = ('state',)

    def __init__(self) -> None:
        self.state: Any = {}

    def set_state(self, state: Any) -> None:
        """Take the attributes."""
        self.state = state

    def make(self, resolve_part: Callable[[Any], Any]) -> Any:
        """Make mmengine's object, or without mmengine a dict of the same contents."""
        contents = {
            'log_history': resolve_part(self.state['_log_history']),
            'count_history': resolve_part(self.state['_count_history']),
            'max_length': int(self.state['max_length']),
        }
        try:
            from mmengine.logging import HistoryBuffer
        except ImportError:
            return contents
        return HistoryBuffer(**contents)


class Method(Placeholder):
    """Stands for one of :data:`METHODS`; only its name is kept."""

    __slots__ = ('name', 'owner')

    def __init__(self, owner: object, name: object) -> None:
        full = owner.name if type(owner) is Allowed else ''
        if type(name) is not str or name not in METHODS.get(full, ()):
            raise Refused(f'builtins.getattr(..., {short(name)})')
        self.owner, self.name = full, name

    def make(self, resolve_part: Callable[[Any], Any]) -> Any:
        """Give the function that OneCycleLR calls; for a history, which has its own, the name."""
        if self.owner == ONE_CYCLE:
            try:
                from mmengine.optim import scheduler
            except ImportError:
                return self.name
            return getattr(scheduler.OneCycleParamScheduler, self.name)
        return self.name


class ConfigDict(Placeholder):
    """Stands for mmengine's ``ConfigDict``, in a data set's ``metainfo`` for example."""

    __slots__ = ('items',)

    def __init__(self, items: Any = None) -> None:
        if items is not None and type(items) is not dict:
            raise Refused(f'a ConfigDict of {type(items).__name__}')
        self.items = items or {}

    def make(self, resolve_part: Callable[[Any], Any]) -> Any:
        """Make mmengine's object, or without mmengine a dict."""
        items = resolve_part(self.items)
        try:
            from mmengine.config import ConfigDict
        except ImportError:
            return items
        return ConfigDict(items)


def make_scalar(dtype: object, data: object) -> np.generic:
    """Stand for numpy's ``scalar``."""
    if type(dtype) is not Dtype or type(data) is not bytes:
        raise Refused('numpy scalar of an object')
    if len(data) != dtype.numpy.itemsize:
        raise ValueError(f'{len(data)} bytes for a number of type {dtype.numpy}')
    return np.frombuffer(data, dtype.numpy)[0]


def array_from_buffer(data: Any, dtype: object, shape: Any, order: object) -> Array:
    """Stand for numpy's ``_frombuffer``, which protocol 5 uses for arrays."""
    if type(data) not in (bytes, bytearray) or order not in ('C', 'F'):
        raise Refused('numpy.ndarray of other memory')
    array = Array(NDARRAY)
    array.set_state((1, shape, dtype, order == 'F', bytes(data)))
    return array
