"""Has mmengine read checkpoints by the reader of this package, from disk and from the web."""

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
from mmseg_repvgg.checkpoint.reading import CheckpointError, read_checkpoint

_FOLDER = 'https://download.openmmlab.com/mmclassification/v0/repvgg/'
_HASHES = {
    'A0': '60ae8e23',
    'A1': 'f81bf3df',
    'A2': 'a8767caf',
    'B0': '5091ecc7',
    'B1': 'd17c45e7',
    'B1g2': 'ae6428fd',
    'B1g4': 'a7a4aaea',
    'B2': 'd8b420ef',
    'B2g4': '0c1990eb',
    'B3': '927a329a',
    'B3g4': 'e01cb280',
}

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


HASH = re.compile(r'-([0-9a-f]{8,64})\.\w+$')
"""The end of a file's name that says how the SHA-256 of its contents begins."""


def install() -> None:
    """Have mmengine read checkpoints by our reader, wherever they are.

    mmengine 0.10.7 fails on its own training checkpoints with torch >= 2.6 (mmengine issue 1655),
    and runs any code in a pickle that comes from the web; onedl-mmengine runs any code in a pickle
    whatever its source, after a warning. ``torchvision://``, ``open-mmlab://`` and ``mmcls://`` end
    in a download by the module's ``load_from_http``, for which there is no extension point, so that
    name is replaced. A second call changes nothing.
    """
    from mmengine.runner import checkpoint

    register = checkpoint.CheckpointLoader.register_scheme
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    register([r'(\S+\:)?s3://', r'(\S+\:)?petrel://'], load_from_backend, force=True)
    checkpoint.load_from_http = load_from_http


# mmengine's log calls a loader by its name without 'load_from_'.
def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from disk, or from where another backend of mmengine finds it.

    See :func:`mmseg_repvgg.checkpoint.read_checkpoint`.
    """
    if '://' in filename:
        return load_from_backend(filename, map_location)
    return read_checkpoint(filename, map_location)


def load_from_backend(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint by the file backend that mmengine has for its scheme, as ``s3://``.

    Raises:
        CheckpointError: If there is no backend, or what it gives is not a checkpoint.
    """
    from mmengine.fileio import get_file_backend

    try:
        backend = get_file_backend(filename)
    except KeyError as error:
        raise CheckpointError(
            f'{filename}: mmengine has no file backend for {error}. Give a path or an URL, or '
            'register one by mmengine.fileio.register_backend'
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
    """Read a checkpoint from the web, by way of torch's cache.

    In distributed runs the first process of each machine downloads and the others wait. Where the
    name ends in the beginning of the file's hash (``-0676ba61.pth``), the hash is checked.

    Args:
        filename: Its URL.
        map_location: As in :func:`torch.load`.
        model_dir: The folder of the cache, by default ``checkpoints`` in ``torch.hub.get_dir()``.
        progress: Whether to show the progress of the download.

    Raises:
        CheckpointError: If the download fails, or what came is not a checkpoint.
        UnsafeCheckpointError: If what came asks to run code.
    """
    from mmengine.dist import get_dist_info

    cached = _place_in_cache(filename, Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints'))
    rank, world_size = get_dist_info()
    try:
        if int(os.environ.get('LOCAL_RANK', rank)) == 0:
            _download(filename, cached, progress)
    finally:  # also on failure, or the others would wait for ever
        if world_size > 1:
            torch.distributed.barrier()
    _download(filename, cached, progress)  # a launcher that sets no LOCAL_RANK, another machine
    return read_checkpoint(cached, map_location)


def _place_in_cache(url: str, folder: Path) -> Path:
    """The path of a file in torch's cache, which knows files by the last part of the URL.

    A second file of that name, from another URL, gets another one. Files that a name with a hash
    tells apart, or that somebody has put there, have no note of their URL beside them.
    """
    path = Path(urllib.parse.urlparse(url).path)
    plain = folder / path.name
    note = _note(plain)
    if plain.exists() and note.exists() and note.read_text(encoding='utf-8') != url:
        digest = hashlib.sha256(url.encode()).hexdigest()[:16]
        return folder / f'{path.stem}.{digest}{path.suffix}'
    return plain


def _note(cached: Path) -> Path:
    return cached.with_name(f'{cached.name}.url')


def _download(url: str, cached: Path, progress: bool) -> None:
    if cached.exists():
        return
    cached.parent.mkdir(parents=True, exist_ok=True)
    found = HASH.search(Path(urllib.parse.urlparse(url).path).name)
    digest = found[1] if found and not found[1].isdigit() else None  # digits only may be a date
    try:
        torch.hub.download_url_to_file(url, str(cached), hash_prefix=digest, progress=progress)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(
            f'{url} could not be downloaded: {error}. Check the URL and the network; or get the '
            f'file in another way, and give its path or put it at {cached}'
        ) from error
    except RuntimeError as error:  # of the hash
        raise CheckpointError(
            f'{url} was downloaded, but is not the file that its name says: {error}. Try again; if '
            'it stays so, do not use it'
        ) from error
    if digest is None:
        with atomic_file(_note(cached)) as temporary:
            temporary.write_text(url, encoding='utf-8')
