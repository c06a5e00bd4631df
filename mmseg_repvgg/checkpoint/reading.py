"""Reads checkpoints without running code from the file, and finds the weights in them."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmseg_repvgg.checkpoint import torch_file
from mmseg_repvgg.checkpoint.allowed_names import Refused
from mmseg_repvgg.checkpoint.names import plain_names, rename
from mmseg_repvgg.checks import preview

EXPECTED = 'a checkpoint written by torch.save, or a .safetensors file'
DOWNLOAD_AGAIN = 'Delete it and download or copy it again'
WRAPPERS = (
    'state_dict', 'model', 'ema', 'model_state_dict', 'module', 'params', 'state_dict_ema',
    'model_ema', 'net', 'ema_net',
)  # fmt: skip
"""Keys under which training scripts store the state dict, in the order of search."""

PACKED = {
    'gzip': b'\x1f\x8b', 'bzip2': b'BZh', 'xz': b'\xfd7zXZ\0', 'zstd': b'\x28\xb5\x2f\xfd',
    '7z': b"7z\xbc\xaf'\x1c", 'rar': b'Rar!',
}  # fmt: skip
"""First bytes of packed files."""


class CheckpointError(ValueError):
    """The file cannot be used as a checkpoint; the text says why and what to do."""


class UnsafeCheckpointError(CheckpointError):
    """The file asks for a function or class that a checkpoint does not need. It was not run."""


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
            does not need. The message names it; it was not run.
        CheckpointError: If the file is damaged, or is not a checkpoint at all.
        OSError: If it cannot be read: no permission, a broken disk.
    """
    file = Path(path).expanduser()
    if not os.fspath(path):
        raise FileNotFoundError('the path of the checkpoint is empty: give a file')
    if not file.exists():
        raise FileNotFoundError(
            f'{file} does not exist (looked from {Path.cwd()}). Check the path of the checkpoint'
        )
    if file.is_dir():
        raise _wrong(file, 'a folder', 'Give the file inside it')
    if not file.is_file():  # opening a pipe could wait for ever
        raise _wrong(file, 'a pipe or a device', 'Write its contents to a file')
    head = _first_bytes(file, 512)
    _refuse_other_kinds(file, head)
    try:
        # safetensors: the size of the header, then JSON
        size, length = file.stat().st_size, int.from_bytes(head[:8], 'little')
        if file.suffix == '.safetensors' or (head[8:9] == b'{' and length < size):
            return _read_safetensors(file, size - 8 - length, map_location)
        loaded = torch_file.load(file, map_location)
    except Refused as error:
        raise UnsafeCheckpointError(
            f'{file} asks for {error}, which a checkpoint does not need. It was not run, and '
            'nothing from the file is used. Get the weights from a source you trust, as a state '
            'dict (not a pickled model) or as .safetensors. Only if you know what that name does '
            'and trust it: allow it with torch.serialization.add_safe_globals in your own code '
            'before reading'
        ) from error
    except (OSError, MemoryError, CheckpointError):
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
        checkpoint: What :func:`read_checkpoint` returns: a state dict, or a dict that holds one
            under a key of ``WRAPPERS``, at any depth.

    Returns:
        The tensors by their :func:`~mmseg_repvgg.checkpoint.names.plain_names`; other values are
        left out.

    Raises:
        CheckpointError: If there are no tensors, or two have the same plain name.
    """
    state: dict[str, Any] = checkpoint
    for _ in WRAPPERS:
        inner = _wrapped(state)
        state = state[inner[0]] if inner else state
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        kinds = preview(sorted({type(value).__name__ for value in state.values()}))
        raise CheckpointError(
            f'no weights found: the checkpoint has the keys {preview(checkpoint, 8)}, with values '
            f'of type {kinds or "none"}. Expected tensors by name, or a dict of them under one of '
            f'{", ".join(WRAPPERS)}'
        )
    plain = plain_names(tensors)
    try:
        return rename({name: tensors[name] for name in plain}, plain.__getitem__)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def passed_over(checkpoint: dict[str, Any]) -> str:
    """A note on weights that :func:`state_dict_of` passes over, such as averaged ones; or ''."""
    keys = [key for key in _wrapped(checkpoint) if _has_tensors(checkpoint[key])]
    if len(keys) < 2:
        return ''
    rest = ', '.join(map(repr, keys[1:]))
    return f'; these are the weights under {keys[0]!r}, the file also has {rest}'


def _wrapped(state: dict[str, Any]) -> list[str]:
    return [key for key in WRAPPERS if isinstance(state.get(key), dict)]


def _has_tensors(value: dict[str, Any]) -> bool:
    return any(isinstance(item, Tensor) for item in value.values())


def _first_bytes(file: Path, count: int) -> bytes:
    try:
        with file.open('rb') as stream:
            return stream.read(count)
    except OSError as error:
        text = f'{file} cannot be read: {error.strerror or error}. Check that you may read it'
        raise type(error)(error.errno, text) from error


def _refuse_other_kinds(file: Path, head: bytes) -> None:
    """Raise CheckpointError for files that are often mistaken for a checkpoint."""
    if not head:
        raise _wrong(file, 'an empty file', DOWNLOAD_AGAIN)
    if head.startswith(b'version https://git-lfs'):
        raise _wrong(file, 'a git-lfs pointer, not the file itself', "Run 'git lfs pull'")
    packed = [name for name, magic in PACKED.items() if head.startswith(magic)]
    if packed or head[257:262] == b'ustar':
        raise _wrong(file, f'a {packed[0] if packed else "tar"} file', 'Unpack it')
    start = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if start.startswith((b'<!doctype', b'<html', b'<?xml')):
        raise _wrong(file, 'a web page', f'The download failed. {DOWNLOAD_AGAIN}; check the URL')
    if head.startswith(b'PK'):
        _refuse_other_zips(file)
    elif all(byte in b'\t\n\f\r' or 32 <= byte < 127 for byte in head):
        raise _wrong(file, f'text, beginning {head[:40].decode()!r}', DOWNLOAD_AGAIN)


def _refuse_other_zips(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            names = [Path(name).name for name in archive.namelist()]
    except zipfile.BadZipFile:  # the directory of a zip file is at its end
        size = file.stat().st_size
        raise _wrong(file, f'a zip file cut short after {size} bytes', DOWNLOAD_AGAIN) from None
    if 'constants.pkl' in names:
        raise _wrong(file, 'a TorchScript program', 'It has no checkpoint: use its source .pth')
    if 'data.pkl' not in names:
        hint = 'If the checkpoint is inside, unpack it'
        raise _wrong(file, f'a zip file of something else ({preview(names, 8)})', hint)


def _read_safetensors(file: Path, rest: int, map_location: Any) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not isinstance(map_location, str | torch.device | None):
        raise CheckpointError(
            f'map_location={map_location!r} cannot be used for {file}: give a device, e.g. "cpu"'
        )
    if rest < 0:
        raise torch_file.CutShort(f'its header needs {-rest} bytes more')
    try:
        return load_file(file, device=str(map_location or 'cpu'))
    except SafetensorError as error:
        if 'incomplete' in str(error).lower():
            raise torch_file.CutShort(error) from error
        raise


def _wrong(file: Path, found: str, fix: str) -> CheckpointError:
    return CheckpointError(f'{file} is {found}; expected {EXPECTED}. {fix}')


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip('.')
    if 'map_location' in reason:  # saved from a device that this machine does not have
        return CheckpointError(f"{file} cannot be read here: {reason}. Use map_location='cpu'")
    if isinstance(error, EOFError | torch_file.CutShort):
        return CheckpointError(
            f'{file} cannot be read, it is not complete: {reason}. {DOWNLOAD_AGAIN}'
        )
    return CheckpointError(
        f'{file} cannot be read: {reason}. Expected {EXPECTED}. Compare it with its source: if '
        'they differ, copy it again'
    )
