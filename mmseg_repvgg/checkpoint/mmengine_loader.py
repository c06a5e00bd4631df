"""Has mmengine read checkpoints by the reader of this package, from disk and from the web."""

import http.client
import os
import urllib.parse
from pathlib import Path
from typing import Any

import torch

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


def install() -> None:
    """Have mmengine read checkpoints from disk and from the web by our reader.

    mmengine 0.10.7 fails on its own training checkpoints with torch >= 2.6 (mmengine issue 1655),
    and runs any code in a pickle that comes from the web; onedl-mmengine runs any code in a pickle
    whatever its source, after a warning. ``torchvision://``, ``open-mmlab://`` and ``mmcls://`` end
    in a download by the module's ``load_from_http``, for which there is no extension point, so that
    name is replaced.
    """
    from mmengine.runner import checkpoint

    register = checkpoint.CheckpointLoader.register_scheme
    register('', load_from_local, force=True)
    register(('http://', 'https://'), load_from_http, force=True)
    checkpoint.load_from_http = load_from_http


# mmengine's log calls a loader by its name without 'load_from_': these are its own names.
def load_from_local(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from disk. See :func:`mmseg_repvgg.checkpoint.read_checkpoint`."""
    return read_checkpoint(filename, map_location)


def load_from_http(
    filename: str,
    map_location: Any = None,
    model_dir: str | None = None,
    progress: bool = os.isatty(0),
) -> dict[str, Any]:
    """Read a checkpoint from the web, by way of torch's cache.

    In distributed runs the first process of each machine downloads and the others wait.

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

    folder = Path(model_dir or Path(torch.hub.get_dir()) / 'checkpoints')
    cached = folder / Path(urllib.parse.urlparse(filename).path).name
    rank, world_size = get_dist_info()
    try:
        if int(os.environ.get('LOCAL_RANK', rank)) == 0:
            _download(filename, cached, progress)
    finally:  # also on failure, or the others would wait for ever
        if world_size > 1:
            torch.distributed.barrier()
    _download(filename, cached, progress)  # a launcher that sets no LOCAL_RANK, another machine
    return read_checkpoint(cached, map_location)


def _download(url: str, cached: Path, progress: bool) -> None:
    if cached.exists():
        return
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(cached), progress=progress)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(
            f'{url} could not be downloaded: {error}. Check the URL and the network; or get the '
            f'file in another way, and give its path or put it at {cached}'
        ) from error
