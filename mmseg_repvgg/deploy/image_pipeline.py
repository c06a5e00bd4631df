"""The test images of a config, and how they are prepared for an exported model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, Registry, init_default_scope

from mmseg_repvgg.datasets.demo_scenes import compose_scene
from mmseg_repvgg.deploy.images import READING, as_pixels, read_image, resize_as_tested
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.engine.data_settings import data_sets

FAMILY = ('mmcv.', 'mmseg.', 'mmengine.')
"""Packages whose transforms are identified by name."""

TRIED = 10
"""How many images of a test set are tried until one can be read."""


@dataclass(frozen=True)
class Preparation:
    """How images are read and changed before the data preprocessor."""

    color_type: str = 'color'
    resize: tuple[int, int] | None = None  # width, height
    keep_ratio: bool = True
    normalize: Mapping[str, Any] | None = None  # mean, std, to_rgb of a transform Normalize
    left_out: tuple[str, ...] = ()
    augmented: bool = False  # has test-time augmentation, which is not repeated


def read_test_pipeline(cfg: Config, leave_out: Sequence[str] = ()) -> Preparation:
    """Read the pipeline of the config's test set.

    Args:
        cfg: A config of mmseg.
        leave_out: Names of transforms that the caller of the exported model applies.

    Raises:
        ValueError: If an exported model cannot repeat a transform; names it.
    """
    init_default_scope(cfg.get('default_scope') or 'mmseg')  # to look up transforms
    found = Preparation()
    for transform in first_test_set(cfg).get('pipeline') or ():
        found = _add(found, transform, leave_out)
    return found


def first_test_set(cfg: Config) -> dict[str, Any]:
    """Settings of the first test set of a config, without wrappers; empty if there is none."""
    return first_data_set(cfg, 'test_dataloader')


def first_data_set(cfg: Config, loader: str) -> dict[str, Any]:
    """Settings of the first data set of a loader, without wrappers; empty if there is none."""
    dataset = (cfg.get(loader) or {}).get('dataset')
    return next((settings for _, settings in data_sets(dataset)), {})


def class_of(registry: Registry, settings: Mapping[str, Any]) -> Any:
    """The class that settings are for, found in the default scope; None if it is unknown."""
    kind = settings.get('type')
    if not isinstance(kind, str):
        return kind
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(kind)


def _add(found: Preparation, transform: Any, leave_out: Sequence[str]) -> Preparation:
    name = type_name(transform)
    if name in leave_out:
        return replace(found, left_out=(*found.left_out, name))
    kind = class_of(TRANSFORMS, transform)
    if inspect.isclass(kind) and issubclass(kind, LoadAnnotations):
        return found
    known = kind is not None and str(kind.__module__).startswith(FAMILY)
    if known and name == 'TestTimeAug':
        for step in _first_view(transform['transforms']):
            found = _add(found, step, leave_out)
        return replace(found, augmented=True)
    if known and name in _KNOWN:
        return _KNOWN[name](found, transform)
    raise _refusal(f'transform {name}', name)


def _refusal(what: str, name: str) -> ValueError:
    return ValueError(
        f'test_dataloader: the {what} of the test pipeline changes what the network sees, and an '
        'exported model cannot repeat it. Remove it from the pipeline, and train and test without '
        'it. Or, if the user of the exported model applies it to the images, pass '
        f'--leave-out {name}'
    )


def _first_view(groups: Sequence[Sequence[Any]]) -> Iterator[Any]:
    """Yield the steps of one view without flips and scales, which are the augmentation."""
    for group in groups:
        if group and type_name(group[0]) not in ('Resize', 'RandomFlip'):
            yield group[0]


def _load(found: Preparation, transform: Any) -> Preparation:
    backend = transform.get('imdecode_backend', 'cv2')
    if backend not in (None, 'cv2'):
        raise _refusal(f"LoadImageFromFile(imdecode_backend='{backend}')", 'LoadImageFromFile')
    color_type = transform.get('color_type', 'color')
    if color_type not in READING:
        raise _refusal(f"LoadImageFromFile(color_type='{color_type}')", 'LoadImageFromFile')
    return replace(found, color_type=color_type)


def _flip(found: Preparation, transform: Any) -> Preparation:
    if transform.get('prob') not in (0, None):
        raise _refusal(f'RandomFlip(prob={transform["prob"]})', 'RandomFlip')
    return found


def _normalize(found: Preparation, transform: Any) -> Preparation:
    if found.normalize is not None:
        raise _refusal('second Normalize', 'Normalize')
    values = {key: tuple(map(float, transform[key])) for key in ('mean', 'std')}
    return replace(found, normalize=dict(values, to_rgb=transform.get('to_rgb', True)))


def _resize(found: Preparation, transform: Any) -> Preparation:
    for key, usual in (('interpolation', 'bilinear'), ('backend', 'cv2')):
        if transform.get(key, usual) != usual:
            raise _refusal(f'Resize({key}={transform[key]!r})', 'Resize')
    if transform.get('scale') is None:
        if transform.get('scale_factor') not in (1, (1, 1), [1, 1]):
            raise _refusal(f'Resize(scale_factor={transform.get("scale_factor")})', 'Resize')
        return found
    if found.resize is not None:
        raise _refusal('second Resize', 'Resize')
    scale = transform['scale']
    width, height = (scale, scale) if isinstance(scale, int) else scale
    keep_ratio = bool(transform.get('keep_ratio', False))
    return replace(found, resize=(int(width), int(height)), keep_ratio=keep_ratio)


_KNOWN = dict(
    LoadImageFromFile=_load,
    PackSegInputs=lambda found, transform: found,
    RandomFlip=_flip,
    Normalize=_normalize,
    Resize=_resize,
)
"""For each transform that can be repeated, the function that adds it to a Preparation."""


@dataclass(frozen=True)
class Sample:
    """An image to compare an exported model on."""

    image: np.ndarray  # (H, W, channels) in BGR, as it is in its file
    name: str  # for reports
    tested_size: tuple[int, int] | None  # height, width as the network sees it; None: not known

    @classmethod
    def of(cls, cfg: Config, preparation: Preparation, channels: int) -> Sample:
        """The first test image that can be read, or a demo scene if there is none.

        Labels are not needed.

        Args:
            cfg: The config.
            preparation: How images are read.
            channels: How many channels an image has.
        """
        for index, path in enumerate(islice(image_paths(cfg), TRIED)):
            try:
                image = read_pixels(path, preparation, channels)
            except (ValueError, OSError):
                continue
            name = 'the first test image' if not index else f'test image {index}'
            tested = resize_as_tested(image, preparation.resize, preparation.keep_ratio)
            return cls(image, name, (tested.shape[0], tested.shape[1]))
        return cls(demo_scene(channels), 'a demo scene', None)


def read_pixels(path: str, preparation: Preparation, channels: int) -> np.ndarray:
    """Read an image as the test pipeline does: (H, W, channels) in BGR."""
    color_type = preparation.color_type
    return as_pixels(read_image(path, color_type), channels, color_type)


def demo_scene(channels: int) -> np.ndarray:
    """A drawn street scene of 512x256 pixels: (256, 512, channels) uint8 in BGR."""
    scene, _ = compose_scene(np.random.default_rng(0), 512, 256)
    planes = [scene[..., 2 - channel % 3] for channel in range(channels)]
    return np.stack(planes, axis=-1)


def image_paths(cfg: Config) -> Iterator[str]:
    """Yield the image files of a config's test set; none if the data are not there."""
    try:
        dataset = build_test_set(cfg, pipeline=[])
        count = len(dataset)
    except Exception:  # custom data sets may raise anything, and images are optional
        return
    for index in range(count):
        path = dataset.get_data_info(index).get('img_path')
        if path:
            yield path


def build_test_set(cfg: Config, **changes: Any) -> Any:
    """Build the first test set of a config, or an empty list if there is none.

    Args:
        cfg: The config.
        **changes: Settings to change.
    """
    settings = first_test_set(cfg)
    return DATASETS.build(dict(settings, **changes)) if settings else []
