"""Describe a segmentor for export: classes, colours, normalisation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmseg_repvgg.deploy.export_graph import Normalisation, num_channels, threshold_of
from mmseg_repvgg.deploy.image_pipeline import Preparation, first_test_set
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.sample_images import build_test_set
from mmseg_repvgg.version import __version__

Palette = tuple[tuple[int, int, int], ...]


def describe_model(
    cfg: Config, model: Any, loaded: dict[str, Any], checkpoint: Path, preparation: Preparation
) -> ModelDescription:
    """Describe a segmentor, except what the export sets: format, size, stride, rewrites.

    Args:
        cfg: The config.
        model: The segmentor.
        loaded: The content of the checkpoint.
        checkpoint: Its file.
        preparation: What the test pipeline does.

    Raises:
        ValueError: If the data preprocessor is unknown or does not fit, or the names of the classes
            do not fit the head.
    """
    normalisation = Normalisation.of(model, preparation.normalize)
    threshold = threshold_of(model)
    classes, palette = _classes(cfg, loaded, model.num_classes)
    if threshold is not None and len(classes) == 1:  # label 1 is the class
        classes, palette = ('background', *classes), ((0, 0, 0), *palette)
    return ModelDescription(
        format='',
        size=(0, 0),
        dynamic_batch=False,
        preprocessing_inside=False,
        argmax_inside=False,
        mean=normalisation.mean,
        std=normalisation.std,
        to_rgb=normalisation.to_rgb,
        classes=classes,
        palette=palette,
        stride=None,
        rewrites=(),
        source_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        version=__version__,
        channels=num_channels(model),
        color_type=preparation.color_type,
        resize=preparation.resize,
        keep_ratio=preparation.keep_ratio,
        align_corners=bool(model.align_corners),
        threshold=threshold,
        left_out=preparation.left_out,
    )


def _classes(cfg: Config, loaded: dict[str, Any], count: int) -> tuple[tuple[str, ...], Palette]:
    """Names and colours of the classes; numbers and greys if there are none.

    Raises:
        ValueError: If the number of names is not that of the classes of the head.
    """
    found = [(where, meta) for where, meta in _metas(cfg, loaded) if meta.get('classes')]
    names = tuple(f'class {i}' for i in range(count))
    if found:
        where, meta = found[0]
        names = tuple(map(str, meta['classes']))
        if len(names) != count:
            raise ValueError(
                f'the decode head has num_classes={count}, but {where} names {len(names)} classes: '
                f'{", ".join(names)}. Give the names of the classes that it was trained on with '
                'test_dataloader.dataset.metainfo=dict(classes=(...), palette=[...]) in the config'
            )
    for _, meta in found:
        palette = meta.get('palette') or ()
        if tuple(map(str, meta['classes'])) == names and len(palette) == count:
            return names, tuple((int(r), int(g), int(b)) for r, g, b in palette)
    greys = [255 * i // max(count - 1, 1) for i in range(count)]
    return names, tuple((g, g, g) for g in greys)


def _metas(cfg: Config, loaded: dict[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sources of class names; the first that has names is used."""
    settings = first_test_set(cfg) or {}
    built = _metainfo(settings)
    if settings.get('metainfo'):
        yield 'metainfo of test_dataloader.dataset', built
    yield 'dataset_meta of the checkpoint', (loaded.get('meta') or {}).get('dataset_meta') or {}
    yield f'the data set {settings.get("type")} of test_dataloader', built


def _metainfo(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The meta information of a data set, without loading it."""
    if not settings:
        return {}
    try:
        return build_test_set(settings, lazy_init=True).metainfo
    except Exception:  # a custom data set with other arguments
        kind = settings['type']
        if isinstance(kind, str):
            with DATASETS.switch_scope_and_registry(None) as registry:  # of the default scope
                kind = registry.get(kind)
        own = dict(settings.get('metainfo') or {})
        return dict(getattr(kind, 'METAINFO', None) or {}, **own)
