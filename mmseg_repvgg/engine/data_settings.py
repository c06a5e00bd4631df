"""Finds the data sets of a config, and checks them before anything is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import isclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmseg_repvgg.checks import check_crops, preview
from mmseg_repvgg.datasets.inspect_data import no_images


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
    """Check that the data folders exist and hold images, before anything is built.

    Remote folders (``s3://...``) are not checked.

    Raises:
        FileNotFoundError: If one is missing; the message names it, its option and how to make it.
        ValueError: If the ``crop_size`` of a transform is invalid, or a data set has no images.
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
                    'mmseg-repvgg prepare-cityscapes PATH; demo scenes: mmseg-repvgg '
                    'make-demo-scenes PATH)'
                )
            if root and is_local:
                _check_places(f'{loader}.{key}', dataset)
            if is_local:
                _check_images(f'{loader}.{key}', dataset, cfg.get('default_scope') or 'mmseg')


def check_not_data(cfg: Config, option: str, folder: str) -> None:
    """Refuse an output folder in a folder of the test data, whose files have the same names.

    Raises:
        ValueError: If it is; the message names the option.
    """
    for key, dataset in data_sets(cfg.test_dataloader.dataset):
        for place in (dataset.get('data_prefix') or {}).values():
            data = Path(dataset.get('data_root') or '', place or '').resolve()
            if Path(folder).resolve().is_relative_to(data):
                raise ValueError(
                    f'{option} {folder!r} is in {str(data)!r}, a folder of test_dataloader.{key}, '
                    'and would overwrite data: give another folder'
                )


def _check_images(where: str, dataset: Mapping[str, Any], scope: str) -> None:
    """Check that there are images; of a data set without, mmengine says only what numpy does."""
    from mmseg.datasets import BaseSegDataset  # not above: classifiers do not need mmseg

    with DATASETS.switch_scope_and_registry(scope) as registry:
        kind = dataset.get('type')
        kind = registry.get(kind) if isinstance(kind, str) else kind
        if not (isclass(kind) and issubclass(kind, BaseSegDataset)):
            return
        try:
            built = registry.build(dict(dataset, pipeline=[], lazy_init=True))
        except TypeError:  # a data set of the user without these arguments
            return
    if not built.load_data_list():
        raise ValueError(no_images(where, built))


def _check_places(where: str, dataset: Mapping[str, Any]) -> None:
    """Check that the folders of images and label maps, and the list of names, are there."""
    root, prefix = Path(dataset.get('data_root') or ''), dataset.get('data_prefix')
    named = prefix if isinstance(prefix, Mapping) else {}
    places = {f'data_prefix.{key}': named.get(key) for key in ('img_path', 'seg_map_path')}
    for option, place in dict(places, ann_file=dataset.get('ann_file')).items():
        if place and '://' not in str(place) and not (root / place).exists():
            raise FileNotFoundError(
                f'{where}.{option}={str(place)!r} is not in data_root {str(root)!r}; it has '
                f'{preview(sorted(p.name for p in root.iterdir()), 8)}. Correct the name, or '
                'data_root'
            )
