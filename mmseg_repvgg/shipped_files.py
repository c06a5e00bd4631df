"""The configs, tools and model index that come with the package.

A wheel holds them in ``mmseg_repvgg/.mim``, where mim and mmengine look for those of a package; in
a checkout they are next to the package.
"""

from __future__ import annotations

import os
from pathlib import Path


def shipped_folder() -> Path:
    """The folder that holds ``configs``, ``tools`` and ``model-index.yml``.

    Raises:
        FileNotFoundError: If there is none.
    """
    package = Path(__file__).resolve().parent
    folders = (package / '.mim', package.parent)
    for folder in folders:
        if (folder / 'model-index.yml').is_file() and (folder / 'configs').is_dir():
            return folder
    raise FileNotFoundError(
        f'mmseg_repvgg is installed without its configs: neither {folders[0]} nor {folders[1]} '
        'holds model-index.yml and configs. Reinstall it: pip install --force-reinstall '
        '--no-deps mmseg-repvgg'
    )


def config_path(name: str | os.PathLike[str]) -> str:
    """The file of a config that comes with the package, for ``_base_`` of another config.

    Args:
        name: Its path in ``configs``, such as ``imagenet/repvgg_a0_120e.py``.

    Raises:
        FileNotFoundError: If there is no such config.
    """
    folder = shipped_folder() / 'configs'
    path = folder / name
    if not path.is_file():
        raise FileNotFoundError(f'{name} is not a config of mmseg_repvgg; they are in {folder}')
    return str(path)


def find_config(path: str | os.PathLike[str]) -> str:
    """A config file of the user, or else one that comes with the package.

    Args:
        path: A file, or what :func:`config_path` takes, with or without ``configs/`` before it.

    Raises:
        FileNotFoundError: If there is none.
    """
    text = os.fspath(path)
    if os.path.isfile(text):
        return text
    folder = shipped_folder() / 'configs'
    shipped = folder / text.removeprefix('configs/')
    if not shipped.is_file():
        raise FileNotFoundError(
            f'config {text} not found: neither a file nor one of the configs in {folder}'
        )
    return str(shipped)
