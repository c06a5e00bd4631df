"""Finds the data sets of a config, and checks them before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmseg_repvgg.checks import check_crops


def data_sets(settings: Any, where: str = 'dataset') -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and settings of each data set, also in wrappers (``ConcatDataset``)."""
    if not isinstance(settings, Mapping):
        return
    inner = {'dataset': settings.get('dataset')}
    inner |= {f'datasets.{i}': item for i, item in enumerate(settings.get('datasets') or ())}
    wrapped = {key: item for key, item in inner.items() if isinstance(item, Mapping)}
    if not wrapped:
        yield where, settings
    for key, item in wrapped.items():
        yield from data_sets(item, f'{where}.{key}')


def check_data(cfg: Config, *loaders: str) -> None:
    """Check that the data folders exist, before anything is built.

    Remote folders (``s3://...``) are not checked.

    Raises:
        FileNotFoundError: If one is missing; the message names it, its option and how to make it.
        ValueError: If the ``crop_size`` of a transform is invalid.
    """
    for loader in loaders:
        for key, dataset in data_sets((cfg.get(loader) or {}).get('dataset')):
            check_crops(loader, dataset.get('pipeline') or [])
            root = dataset.get('data_root')
            is_local = '://' not in str(root) and not dataset.get('backend_args')
            if root and is_local and not Path(root).is_dir():
                raise FileNotFoundError(
                    f'{loader}: data_root {str(root)!r} is not a folder. Set it with --cfg-options '
                    f'{loader}.{key}.data_root=PATH (Cityscapes: prepare it with '
                    'tools/prepare_cityscapes.py PATH; demo scenes: tools/make_demo_scenes.py PATH)'
                )
