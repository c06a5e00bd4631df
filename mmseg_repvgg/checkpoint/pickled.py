"""Unpickles what ``torch.save`` and mmengine write, without running code from the file.

mmengine's training checkpoints hold more than tensors: ``HistoryBuffer`` objects, numpy arrays and
scalars in the message hub, a function in the state of ``OneCycleLR``, a ``ConfigDict`` in the meta
information. Allowing the real functions and classes is not safe:

* with the real ``getattr``, which pickle protocol 2 uses to write ``HistoryBuffer.min``, a pickle
  can get from ``HistoryBuffer.__init__.__globals__`` to ``os.system`` (torch's own
  ``_rebuild_from_type_v2`` then calls it);
* ``numpy.dtype.__setstate__`` trusts the flags in the file, so a pickle can make numpy follow
  pointers made of bytes from the file: a crash, or worse;
* ``bytearray(10**12)`` and a tensor larger than its storage take all memory.

So a name in a pickle becomes an :class:`Allowed`, never the real function or class. Calling it runs
a function of :mod:`mmseg_repvgg.checkpoint.allowed_names` that checks its arguments. Objects that
get their state later are placeholders, which :func:`resolve` replaces at the end. PyTorch's list of
safe names is read, never changed: other threads may use ``torch.load`` at the same time.
"""

from __future__ import annotations

import datetime
import pickle
import re
import reprlib
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, BinaryIO

import numpy as np
import torch


class Refused(Exception):
    """The pickle asks for something that a checkpoint does not need; the text says what."""


class Allowed:
    """A name that a pickle may mention.

    Args:
        name: Module and name, with a dot between them.
        call: The function that a call runs; None if it may not be called.
        value: What it stands for when it is not called, for example a class in a dict.
    """

    __slots__ = ('call', 'name', 'value')

    def __init__(self, name: str, call: Callable[..., Any] | None = None, value: Any = None):
        self.name, self.call, self.value = name, call, value


def short(value: Any) -> str:
    """Format a value from a file for a message; deeply nested values stay short too."""
    return value.name if type(value) is Allowed else reprlib.repr(value)


class Placeholder:
    """Holds what a pickle gives to an object, until :func:`resolve` makes the object."""

    __slots__ = ()

    def set_state(self, state: Any) -> None:
        """Take the state."""
        raise Refused(f'a state for {type(self).__name__}')

    def make(self, resolve_part: Callable[[Any], Any]) -> Any:
        """Make the object; ``resolve_part`` resolves what it holds."""
        raise NotImplementedError


# Types of dict keys and set items: hashing them takes no longer than reading them.
KEYS = (
    str, int, float, bool, complex, bytes, type(None), np.generic, PurePath,
    datetime.date, datetime.time, datetime.timedelta, torch.dtype, torch.device,
)  # fmt: skip
MOST_PARTS_OF_A_KEY = 1000
DICTS, LISTS = (dict, OrderedDict, Counter, defaultdict), (list, deque)


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


class Unpickler(pickle._Unpickler):
    """Unpickles with :class:`Allowed` names only.

    It extends pickle's Python version: the C version allocates 2**32 objects if the file says so.

    Args:
        stream: The file. ``read`` must not allocate more bytes than the file has.
        names: What is allowed, by ``module.name``.
        types: Classes allowed by users; pickle itself sets the state of their instances.
        load_storage: Returns the storage for its description in the pickle.
    """

    stack: list[Any]  # of the base class, which has no types
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(
        self,
        stream: BinaryIO,
        names: Mapping[str, Any],
        types: tuple[type, ...] = (),
        load_storage: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(stream, encoding='utf-8')
        self.names, self.types, self.load_storage = names, types, load_storage

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up; nothing is imported."""
        module = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}.get(module, module)
        full = f'{module}.{name}'
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
        if type(function) is not Allowed or function.call is None or type(args) is not tuple:
            raise Refused(f'a call of {short(function)}')
        self.stack[-1] = function.call(*args)

    def load_newobj(self) -> None:
        """Make an object of an allowed class."""
        function, args = self.stack[-2:]
        if type(function) is Allowed and function.value in self.types and type(args) is tuple:
            self.stack[-2:] = [function.value.__new__(function.value, *args)]
        else:
            self.load_reduce()

    def load_build(self) -> None:
        """Give an object its state."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Placeholder):
            target.set_state(state)
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
        self._check_target((set,))
        self.stack[-1].update(checked_keys(items))

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
        self._check_target(LISTS)
        self.stack[-1].extend(items)

    def _fill(self, items: list[Any]) -> None:
        self._check_target(DICTS)
        for key, value in zip(checked_keys(items[::2]), items[1::2], strict=True):
            self.stack[-1][key] = value

    def _check_target(self, kinds: tuple[type, ...]) -> None:
        kind = type(self.stack[-1])
        if kind not in kinds and not (kind in self.types and issubclass(kind, kinds)):
            raise Refused(f'items for an object of type {kind.__name__}')


OPERATIONS = re.findall(
    r'\w+',
    'proto frame stop mark pop pop_mark dup none true false binint binint1 binint2 long1 long4 '
    'binfloat binbytes short_binbytes binbytes8 binstring short_binstring binunicode '
    'short_binunicode binunicode8 tuple tuple1 tuple2 tuple3 empty_tuple empty_list '
    'empty_dictionary empty_set binget long_binget binput long_binput memoize global stack_global '
    'binpersid reduce newobj build append appends setitem setitems additems frozenset '
    'bytearray8',
)
"""Instructions of pickle protocols 2 to 5; none allocates memory for data that is not there."""


def _dispatch() -> dict[int, Callable[[Any], None]]:
    names = {f'load_{name}' for name in OPERATIONS}
    found: dict[int, Callable[[Any], None]] = dict.fromkeys(range(256), Unpickler.load_others)
    for code, function in pickle._Unpickler.dispatch.items():
        if function.__name__ in names:
            found[code] = getattr(Unpickler, function.__name__)
    return found


Unpickler.dispatch = _dispatch()  # type: ignore[assignment]


def resolve(node: Any, done: dict[int, Any] | None = None) -> Any:
    """Replace every placeholder in a tree of dicts, lists and tuples by the real object.

    Dicts and lists are changed in place; an object that occurs twice stays one object.

    Raises:
        Refused: If a function that may only be called is used as a value.
    """
    done = {} if done is None else done
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, dict):
        done[id(node)] = node
        for key in node:  # not update(): a Counter's adds
            node[key] = resolve(node[key], done)
    elif isinstance(node, LISTS):
        done[id(node)] = node
        for index, value in enumerate(node):
            node[index] = resolve(value, done)
    elif type(node) is tuple:
        values = tuple(resolve(value, done) for value in node)
        same = all(new is old for new, old in zip(values, node, strict=True))
        done[id(node)] = node if same else values
    elif isinstance(node, Placeholder):
        done[id(node)] = node.make(lambda part: resolve(part, done))
    elif type(node) is Allowed:
        if node.value is None:
            raise Refused(node.name)
        return node.value
    return done.get(id(node), node)
