"""Describe a segmentor for export: channels, normalisation, classes, colours."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS
from torch import nn

from mmseg_repvgg.deploy.image_pipeline import Preparation, build_test_set, class_of, first_test_set
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.version import __version__

Palette = tuple[tuple[int, int, int], ...]


def describe_model(
    cfg: Config,
    model: Any,
    loaded: dict[str, Any],
    checkpoint: Path,
    preparation: Preparation,
    **exported: Any,
) -> ModelDescription:
    """Describe a segmentor.

    Args:
        cfg: The config.
        model: The segmentor.
        loaded: The content of the checkpoint.
        checkpoint: Its file.
        preparation: What the test pipeline does.
        **exported: The fields that the export chooses: format, size, stride, rewrites, whether the
            batch is dynamic, and whether preprocessing and argmax are inside.

    Raises:
        ValueError: If the data preprocessor is unknown or does not fit, or the names of the classes
            do not fit the head.
    """
    mean, std, to_rgb = _normalisation(model, preparation.normalize)
    threshold = _threshold(model)
    classes, palette = _classes(cfg, loaded, model.num_classes)
    if threshold is not None and len(classes) == 1:  # label 1 is the class
        classes, palette = ('background', *classes), ((0, 0, 0), *palette)
    return ModelDescription(
        mean=mean,
        std=std,
        to_rgb=to_rgb,
        classes=classes,
        palette=palette,
        source_sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        version=__version__,
        channels=num_channels(model),
        color_type=preparation.color_type,
        resize=preparation.resize,
        keep_ratio=preparation.keep_ratio,
        align_corners=bool(model.align_corners),
        threshold=threshold,
        left_out=preparation.left_out,
        **exported,
    )


def num_channels(model: Any) -> int:
    """The image channels of a segmentor: the input channels of its backbone's first conv."""
    convs = (m for m in model.backbone.modules() if isinstance(m, nn.Conv2d))
    return next((conv.in_channels for conv in convs), 3)


def _threshold(model: Any) -> float | None:
    """Sigmoid above which a head with one channel predicts 1; None if each class has one."""
    if getattr(model, 'out_channels', 2) != 1:
        return None
    heads: Any = model.decode_head
    head: Any = heads[-1] if isinstance(heads, nn.ModuleList) else heads
    return float(head.threshold)


def _normalisation(
    model: Any, normalize: Mapping[str, Any] | None
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """How a BGR image is normalised before the network sees it.

    Args:
        model: The segmentor, with its data preprocessor.
        normalize: Settings of the transform ``Normalize`` of the test pipeline. If given, the data
            preprocessor must not normalise.

    Returns:
        Mean and standard deviation in the order the network sees the channels, and whether BGR
        becomes RGB.

    Raises:
        ValueError: If the data preprocessor is not mmseg's, both normalise, or the number of means
            does not fit the channels.
    """
    preprocessor, channels = model.data_preprocessor, num_channels(model)
    known = type(preprocessor).__module__.startswith(('mmseg.', 'mmengine.'))
    if not known or not hasattr(preprocessor, '_enable_normalize'):
        raise ValueError(
            f'data_preprocessor {type(preprocessor).__name__} is unknown: what it does to an '
            "image cannot be described; use dict(type='SegDataPreProcessor', ...)"
        )
    # the package families name it differently; mmseg reorders three channels only
    names = ('channel_conversion', '_channel_conversion')
    to_rgb = channels == 3 and any(getattr(preprocessor, name, False) for name in names)
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if preprocessor._enable_normalize:
        mean, std = (tuple(t.flatten().tolist()) for t in (preprocessor.mean, preprocessor.std))
    if normalize is not None:
        if to_rgb or preprocessor._enable_normalize:
            raise ValueError(
                'images are normalised twice: by Normalize of the test pipeline, and by '
                'data_preprocessor (mean, std or bgr_to_rgb). Remove one of them'
            )
        mean, std = normalize['mean'], normalize['std']
        to_rgb = channels == 3 and bool(normalize['to_rgb'])
    mean, std = (v * channels if len(v) == 1 else v for v in (mean, std))
    if {len(mean), len(std)} != {channels}:
        raise ValueError(
            f'the images are normalised by {len(mean)} means and {len(std)} standard '
            f'deviations, but the backbone takes {channels} channels: give one for each'
        )
    return mean, std, to_rgb


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
    settings = first_test_set(cfg)
    built = _metainfo(cfg, settings)
    if settings.get('metainfo'):
        yield 'metainfo of test_dataloader.dataset', built
    yield 'dataset_meta of the checkpoint', (loaded.get('meta') or {}).get('dataset_meta') or {}
    yield f'the data set {settings.get("type")} of test_dataloader', built


def _metainfo(cfg: Config, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The meta information of the test set, without loading it."""
    if not settings:
        return {}
    try:
        return build_test_set(cfg, pipeline=[], lazy_init=True).metainfo
    except Exception:  # a custom data set with other arguments
        own = getattr(class_of(DATASETS, settings), 'METAINFO', None) or {}
        return {**own, **(settings.get('metainfo') or {})}
