"""Reading weights without running what is in the file, and writing them so that others can."""

import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint.errors import CheckpointError, UnsafeCheckpointError
from mmseg_repvgg.checkpoint.pickled import CAN_STAND_IN, Refused, resolve, stand_ins

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'read_checkpoint',
    'state_dict_of',
    'write_checkpoint',
]

EXPECTED = 'a checkpoint written by torch.save, or a .safetensors file'
DOWNLOAD_AGAIN = 'Delete it and download or copy it again'
WRAPPERS = ('state_dict', 'model', 'ema', 'model_state_dict', 'module', 'params')
"""Keys under which training codes put the state dict, in the order they are looked for."""
PLAIN = (str, int, float, bool, type(None))
_BLOCKED = re.compile(r'GLOBAL (\S+) (?:was not an allowed global|whose module)')


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = 'cpu') -> dict[str, Any]:
    """Read a checkpoint; nothing in the file can run code.

    Reads what ``torch.save`` writes (the zip format and the one before torch 1.6), mmengine's
    training checkpoints with their message hub included, and safetensors.

    Args:
        path: The file, for example a ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``.
        map_location: Where the tensors go, as in :func:`torch.load`; for safetensors a device.

    Returns:
        What the file holds.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeCheckpointError: If the pickle in it asks for a function or class that a checkpoint
            does not need. It is named and has not been run.
        CheckpointError: If the file is damaged, or is not a checkpoint at all.
        OSError: If it cannot be read: no permission, a broken disk.
    """
    file = Path(path).expanduser()
    if not file.exists():
        raise FileNotFoundError(
            f'{file} does not exist (looked from {Path.cwd()}). Check the path of the checkpoint'
        )
    _refuse_other_kinds(file)
    if _is_safetensors(file):
        return _read_safetensors(file, map_location)
    try:
        with stand_ins():
            loaded = torch.load(file, map_location=map_location, weights_only=True)
        loaded = resolve(loaded)
    except Refused as error:
        raise _unsafe(file, str(error)) from error
    except pickle.UnpicklingError as error:
        raise _refusal(file, error) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail in torch, zip or numpy in many ways
        raise _unreadable(file, error) from error
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f'{file} holds one object of type {type(loaded).__name__}; expected a dict with '
            'weights. Save model.state_dict() instead'
        )
    return loaded


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Find the weights in a checkpoint.

    Args:
        checkpoint: What :func:`read_checkpoint` returns: a state dict, or a dict with one under
            one of the keys ``WRAPPERS``, at any depth.

    Returns:
        The tensors by name; what is not a tensor is left out. Of names that all begin with
        ``module.``, as DistributedDataParallel makes them, that part is removed.

    Raises:
        CheckpointError: If there are no tensors.
    """
    state: dict[str, Any] = checkpoint
    for _ in WRAPPERS:
        inner = [state[key] for key in WRAPPERS if isinstance(state.get(key), dict)]
        state = inner[0] if inner else state
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f'no weights found: the checkpoint has the keys {_shown(checkpoint)}. Expected tensors '
            f'by name, or a dict of them under one of {", ".join(WRAPPERS)}'
        )
    while all(name.startswith('module.') for name in tensors):
        tensors = {name.removeprefix('module.'): value for name, value in tensors.items()}
    return tensors


def write_checkpoint(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a checkpoint that ``torch.load(path, weights_only=True)`` reads anywhere.

    The file appears under its name only when it is complete; on failure an older one stays.

    Args:
        checkpoint: Tensors, str, int, float, bool and None in dicts, lists and tuples.
        path: The file to write; its folder exists.

    Raises:
        CheckpointError: If something else is in ``checkpoint``; says where.
        OSError: If it cannot be written: no such folder, no permission, disk full.
    """
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'a checkpoint is a dict, not {type(checkpoint).__name__}')
    _check_plain(checkpoint, 'checkpoint')
    content = io.BytesIO()  # in memory: torch's zip writer hides why a disk refused
    torch.save(checkpoint, content)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def _refuse_other_kinds(file: Path) -> None:
    """Raise CheckpointError for what often stands in the place of a checkpoint."""
    if file.is_dir():
        raise _wrong(file, 'a folder', 'Give the file inside it')
    head = _first_bytes(file, 512)
    if not head:
        raise _wrong(file, 'an empty file', DOWNLOAD_AGAIN)
    if head.startswith(b'version https://git-lfs'):
        raise _wrong(file, 'a git-lfs pointer, not the file itself', "Run 'git lfs pull'")
    start = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if start.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise _wrong(file, 'a web page', f'The download failed. {DOWNLOAD_AGAIN}; check the URL')
    if head.startswith(b'PK'):
        _refuse_other_zips(file)
    elif all(byte in b'\t\n\f\r' or 32 <= byte < 127 for byte in head):
        raise _wrong(file, f'text, beginning {head[:40].decode()!r}', DOWNLOAD_AGAIN)


def _first_bytes(file: Path, count: int) -> bytes:
    try:
        with file.open('rb') as stream:
            return stream.read(count)
    except OSError as error:
        text = f'{file} cannot be read: {error.strerror or error}. Check that you may read it'
        raise type(error)(error.errno, text) from error


def _refuse_other_zips(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [Path(name).name for name in archive.namelist()]
    except zipfile.BadZipFile:  # its directory is at its end
        size = file.stat().st_size
        raise _wrong(file, f'a zip file cut short after {size} bytes', DOWNLOAD_AGAIN) from None
    if 'constants.pkl' in names:
        raise _wrong(file, 'a TorchScript program', 'It has no checkpoint: use the .pth it is from')
    if 'data.pkl' not in names:
        hint = 'If the checkpoint is inside, unpack it'
        raise _wrong(file, f'a zip file of something else ({_shown(names)})', hint)


def _is_safetensors(file: Path) -> bool:
    """Whether the file is named so, or begins as such a file: size of the header, then JSON."""
    if file.suffix == '.safetensors':
        return True
    with file.open('rb') as stream:
        head = stream.read(9)
    return head[8:] == b'{' and int.from_bytes(head[:8], 'little') < file.stat().st_size


def _read_safetensors(file: Path, map_location: Any) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not isinstance(map_location, str | torch.device | None):
        raise CheckpointError(
            f'map_location={map_location!r} cannot be used for {file}: give a device, as "cpu"'
        )
    try:
        return load_file(file, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        raise _unreadable(file, error) from error


def _check_plain(value: Any, where: str) -> None:
    """Raise CheckpointError unless ``torch.load(weights_only=True)`` will read ``value``.

    The types are compared exactly: ``numpy.float64`` is a ``float``, but is pickled as itself.
    """
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in PLAIN:
                raise CheckpointError(f'{where} has the key {key!r} of type {type(key).__name__}')
            _check_plain(item, f'{where}[{key!r}]')
    elif kind in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f'{where}[{index}]')
    elif kind not in (*PLAIN, Tensor, torch.nn.Parameter):
        raise CheckpointError(
            f'{where} is of type {kind.__module__}.{kind.__qualname__}, which not every reader '
            'loads. Allowed are tensors, str, int, float, bool and None in dicts, lists and tuples'
        )


def _wrong(file: Path, found: str, fix: str) -> CheckpointError:
    return CheckpointError(f'{file} is {found}; expected {EXPECTED}. {fix}')


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    reason = _first_line(error)
    if 'map_location' in reason:  # saved from a device that this machine does not have
        return CheckpointError(f"{file} cannot be read as called: {reason}. Use map_location='cpu'")
    return CheckpointError(
        f'{file} cannot be read: {reason}. Expected {EXPECTED}. It may be damaged. {DOWNLOAD_AGAIN}'
    )


def _refusal(file: Path, error: pickle.UnpicklingError) -> CheckpointError:
    """Tell a pickle that asks for too much from one that is damaged or of a newer protocol."""
    blocked = _BLOCKED.search(str(error))
    if blocked is not None:
        return _unsafe(file, blocked[1])
    if 'Unsupported operand' in str(error):
        return _unreadable(file, error)
    return _unsafe(file, f'more than data ({_first_line(error)})')


def _unsafe(file: Path, name: str) -> UnsafeCheckpointError:
    return UnsafeCheckpointError(
        f'{file} asks for {name}, which a checkpoint does not need. It was not run, and nothing of '
        'the file is used. Get the weights from a source you trust, as a state dict (not a pickled '
        'model) or as .safetensors. Only if you have read what that name does and want it: allow '
        'it by torch.serialization.add_safe_globals in your own code before reading'
        + (
            ''
            if CAN_STAND_IN
            else '. Training checkpoints of mmengine need torch >= 2.6: '
            'see python -m mmseg_repvgg.doctor'
        )
    )


def _first_line(error: Exception) -> str:
    """Shorten torch's advice, which ends in recommending an unsafe load."""
    text = str(error).split('WeightsUnpickler error: ')[-1].strip() or type(error).__name__
    return text.splitlines()[0].rstrip('.')


def _shown(names: Any) -> str:
    listed = [str(name) for name in names]
    return ', '.join(listed[:8]) + (', ...' if len(listed) > 8 else '') or 'none'
