"""Checkpoints with more than tensors in them, most of it harmful, for the tests of reading."""

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch._tensor import _rebuild_from_type_v2

_reconstruct = np.empty(0).__reduce__()[0]  # numpy 1 and 2 have it in different places


class Call:
    """Pickles as a call: on loading, ``function(*arguments)`` is run and its result put here."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.reduced


def by_system(trace: Path) -> Call:
    return Call(os.system, f'echo > {trace}')


def by_eval(trace: Path) -> Call:
    return Call(eval, f'open({str(trace)!r}, "w").close()')


def by_getattr(trace: Path) -> Call:
    """Reach ``eval`` from a function of HistoryBuffer, and have a torch function call it.

    Every name in this pickle is on the list of a reader that allows ``getattr`` as it is.
    """
    init = Call(getattr, HistoryBuffer, '__init__')
    builtins_get = Call(getattr, Call(getattr, init, '__builtins__'), 'get')
    builtin = Call(getattr, getattr, '__class__')
    found = Call(_rebuild_from_type_v2, builtins_get, builtin, ('eval',), None)
    source = f'open({str(trace)!r}, "w").close()'
    return Call(_rebuild_from_type_v2, found, builtin, (source,), None)


def by_pointer(_trace: Path) -> Call:
    """An array of objects whose pointers are bytes of the file: reading one is a crash."""
    plain_flags = (3, '|', None, None, None, -1, -1, 0)
    dtype = Call(np.dtype, 'O', False, True, state=plain_flags)
    return Call(_reconstruct, np.ndarray, (0,), b'b', state=(1, (1,), dtype, False, b'A' * 8))


RUNNING = (by_system, by_eval, by_getattr)
"""Those that leave the file ``trace``."""

NAIVE = [
    *(getattr, HistoryBuffer, np.dtype, np.ndarray, _reconstruct),
    *(type(np.dtype(kind)) for kind in ('f8', 'i8', 'O')),
]
"""What a reader allows that takes the names in mmengine's checkpoints as they are."""


def save(where: Path, harm: Any, place: str, zipped: bool = True) -> Path:
    """Write a checkpoint like mmengine's with ``harm`` in it."""
    log = {'train/loss': harm if place == 'message_hub' else 0.5}
    checkpoint = {
        'state_dict': {'weight': torch.ones(1, 2), 'bias': torch.ones(1)},
        'message_hub': {'log_scalars': log, 'runtime_info': {'iter': 2}},
        'meta': {'cfg': harm if place == 'meta' else ''},
    }
    torch.save(checkpoint, where, _use_new_zipfile_serialization=zipped)
    return where


def history(*values: float) -> HistoryBuffer:
    """A log as mmengine keeps it: harmless, and not only tensors."""
    buffer = HistoryBuffer()
    for value in values:
        buffer.update(value)
    return buffer


def edit_pickle(file: Path, old: bytes, new: bytes) -> None:
    """Change the pickle in a checkpoint, as another version would have written it."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, 'w') as archive:
        for name, content in members.items():
            if name.endswith('/data.pkl'):
                assert old in content
                content = content.replace(old, new)
            archive.writestr(name, content)
