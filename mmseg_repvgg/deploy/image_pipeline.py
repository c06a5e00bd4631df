"""Read from a config's test pipeline how images are prepared for an exported model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, init_default_scope

from mmseg_repvgg.deploy.images import READING
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.engine.data_settings import data_sets

FAMILY = ('mmcv.', 'mmseg.', 'mmengine.')
"""Packages whose transforms are identified by name."""


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
    init_default_scope(cfg.get('default_scope', 'mmseg'))  # to look up transforms
    settings = first_test_set(cfg)
    found = Preparation()
    for transform in (settings or {}).get('pipeline') or ():
        found = _add(found, transform, leave_out)
    return found


def first_test_set(cfg: Config) -> dict[str, Any] | None:
    """Settings of the first test set of a config, without wrappers; None if there is none."""
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    return next((settings for _, settings in data_sets(dataset)), None)


def _add(found: Preparation, transform: Any, leave_out: Sequence[str]) -> Preparation:
    name = type_name(transform)
    if name in leave_out:
        return replace(found, left_out=(*found.left_out, name))
    kind = transform.get('type')
    if isinstance(kind, str):
        with TRANSFORMS.switch_scope_and_registry(None) as registry:  # of the default scope
            kind = registry.get(kind)
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


def _unchanged(found: Preparation, transform: Any) -> Preparation:
    return found


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
    PackSegInputs=_unchanged,
    RandomFlip=_flip,
    Normalize=_normalize,
    Resize=_resize,
)
"""For each transform that can be repeated, the function that adds it to a Preparation."""
