"""Makes mmengine read checkpoints with this package's reader, from disk and from the web."""

import contextlib
import errno
import hashlib
import http.client
import os
import re
import urllib.parse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint.reading import DOWNLOAD_AGAIN, CheckpointError, read_checkpoint

_FOLDER = 'https://download.openmmlab.com/mmclassification/v0/repvgg/'
_HASHES = {
    'A0': '60ae8e23', 'A1': 'f81bf3df', 'A2': 'a8767caf', 'B0': '5091ecc7', 'B1': 'd17c45e7',
    'B1g2': 'ae6428fd', 'B1g4': 'a7a4aaea', 'B2': 'd8b420ef', 'B2g4': '0c1990eb',
    'B3': '927a329a', 'B3g4': 'e01cb280',
}  # fmt: skip

PUBLISHED = {
    **{
        arch: f'{_FOLDER}repvgg-{arch}_8xb32_in1k_20221213-{sha}.pth'
        for arch, sha in _HASHES.items()
    },
    'D2se': f'{_FOLDER}repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_'
    '20210909-cf3139b7.pth',
}
"""URL of ImageNet weights by architecture, from configs/repvgg/metafile.yml of mmpretrain; B2g2 and
B3g2 were not published there."""


NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors of a cache that cannot be written; errors of the network have no such number."""
HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
"""The end of a file name that holds the first digits of the file's SHA-256."""


def install() -> None:
    """Make mmengine read all checkpoints with our reader.

    mmengine 0.10.7 fails on its own training checkpoints with torch >= 2.6 (mmengine issue 1655),
    and runs any code in a pickle from the web; onedl-mmengine runs any code in any pickle, after a
    warning. ``torchvision://``, ``open-mmlab://`` and ``mmcls://`` download with the module's
    ``load_from_http``, which has no extension point, so that function is replaced. A second call
    changes nothing.
    """
    from mmengine.runner import checkpoint

    register = checkpoint.CheckpointLoader.register_scheme
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    register([r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], load_from_backend, force=True)
    checkpoint.load_from_http = load_from_http


# mmengine's log shows a loader's name without 'load_from_'.
def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from disk, or through another file backend of mmengine.

    See :func:`mmseg_repvgg.checkpoint.read_checkpoint`.
    """
    if '://' in filename:
        return load_from_backend(filename, map_location)
    return read_checkpoint(filename, map_location)


def load_from_backend(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint with mmengine's file backend for its scheme, for example ``s3://``.

    Raises:
        CheckpointError: If there is no backend, or the file is not a checkpoint.
    """
    from mmengine.fileio import get_file_backend

    try:
        backend = get_file_backend(filename)
    except KeyError as error:
        raise CheckpointError(
            f'{filename}: mmengine has no file backend for {error}. Give a path or a URL, or '
            'register one with mmengine.fileio.register_backend'
        ) from error
    with TemporaryDirectory() as folder:
        file = Path(folder) / (Path(filename).name or 'checkpoint')
        file.write_bytes(backend.get(filename))
        try:
            return read_checkpoint(file, map_location)
        except CheckpointError as error:
            raise type(error)(str(error).replace(str(file), filename)) from error


def load_from_http(
    filename: str,
    map_location: Any = None,
    model_dir: str | None = None,
    progress: bool = os.isatty(0),
) -> dict[str, Any]:
    """Read a checkpoint from the web, through torch's cache.

    In distributed runs the first process of each machine downloads and the others wait. If the
    name ends with the start of the file's hash (``-0676ba61.pth``), the hash is checked.

    Args:
        filename: The URL.
        map_location: As in :func:`torch.load`.
        model_dir: The folder of the cache, by default ``checkpoints`` in ``torch.hub.get_dir()``.
        progress: Whether to show the progress of the download.

    Raises:
        CheckpointError: If the download fails, or the file is not a checkpoint. A download that is
            not complete is removed from the cache.
        UnsafeCheckpointError: If the file asks to run code.
    """
    from mmengine.dist import get_dist_info

    cached = _path_in_cache(filename, Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints'))
    rank, world_size = get_dist_info()
    try:
        if int(os.environ.get('LOCAL_RANK', rank)) == 0:
            _download(filename, cached, progress)
    finally:  # also on failure, or the others would wait for ever
        if world_size > 1:
            torch.distributed.barrier()
    _download(filename, cached, progress)  # on other machines, without LOCAL_RANK
    try:
        return read_checkpoint(cached, map_location)
    except CheckpointError as error:
        is_own = _url_file(cached).exists()  # else checked by its hash, or put there by a user
        if DOWNLOAD_AGAIN not in str(error) or not is_own:
            raise
        with contextlib.suppress(OSError):  # a cache that cannot be written
            cached.unlink()
            _url_file(cached).unlink()
        if cached.exists():
            raise
        raise CheckpointError(
            f'{str(error).replace(DOWNLOAD_AGAIN, "Try again")}. It was downloaded from {filename} '
            'and is removed from the cache: the next run downloads it again'
        ) from error


def _path_in_cache(url: str, folder: Path) -> Path:
    """Return the path of a file in torch's cache, which names files by the last part of the URL.

    If the cache has a file of that name from another URL, the path gets a digest. A file whose
    name has a hash, or that a user put there, has no file with its URL next to it.
    """
    path = Path(urllib.parse.urlparse(url).path)
    if not path.name:
        raise CheckpointError(f'{url} names no file; give the URL of the checkpoint itself')
    plain = folder / path.name
    url_file = _url_file(plain)
    if plain.exists() and url_file.exists() and url_file.read_text(encoding='utf-8') != url:
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        return folder / f'{path.stem}.{digest}{path.suffix}'
    return plain


def _url_file(cached: Path) -> Path:
    return cached.with_name(f'{cached.name}.url')


def _download(url: str, cached: Path, progress: bool) -> None:
    if cached.exists():
        return
    found = HASH.search(Path(urllib.parse.urlparse(url).path).name)
    digest = found[1] if found and not found[1].isdigit() else None  # digits only may be a date
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=digest, progress=progress)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in NOT_WRITABLE:
            raise CheckpointError(
                f'{url} cannot be kept in {cached.parent}: {error.strerror}. Set TORCH_HOME to a '
                'folder with space that you may write to'
            ) from error
        raise CheckpointError(
            f'{url} could not be downloaded: {error}. Check the URL and the network; or get the '
            f'file in another way, and put it at {cached} or give its path: for ImageNet weights '
            '--cfg-options model.pretrained=PATH, or model.pretrained=None to train without them'
        ) from error
    except RuntimeError as error:  # another hash
        raise CheckpointError(
            f'{url} was downloaded, but does not match the hash in its name: {error}. Try again; '
            'if it fails again, do not use the file'
        ) from error
    if digest is None:
        with atomic_file(_url_file(cached)) as temporary:
            temporary.write_text(url, encoding='utf-8')
