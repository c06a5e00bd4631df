"""Checks of what users give, and lists in their messages; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from numbers import Integral, Real
from typing import Any


def preview(names: Iterable[object], most: int = 3) -> str:
    """List the first names for a message: ``a, b, c, ...``; ``none`` if there are none."""
    shown = [str(name) for name in islice(names, most + 1)]
    return ', '.join([*shown[:most], '...'] if len(shown) > most else shown) or 'none'


def is_integer(value: Any, lowest: int | None = None) -> bool:
    """Whether ``value`` is an integer (not a bool), of at least ``lowest``."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    return whole and (lowest is None or int(value) >= lowest)


def is_positive(value: Any) -> bool:
    """Whether ``value`` is a finite number above 0."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def check_sequence(name: str, values: Any) -> tuple[Any, ...]:
    """Convert a list or tuple to a tuple.

    Raises:
        ValueError: If it is something else, for example a single number or a name.
    """
    if isinstance(values, (str, Mapping)) or not isinstance(values, Sequence):
        raise ValueError(f'{name}={values!r} must be a list or a tuple')
    return tuple(values)


def check_integer(name: str, value: Any, lowest: int) -> None:
    """Check that ``value`` is an integer of at least ``lowest``.

    Raises:
        ValueError: If not; the message gives the value.
    """
    if not is_integer(value, lowest):
        raise ValueError(f'{name}={value!r} must be an integer, at least {lowest}')


def check_layer_cfg(name: str, cfg: Any, example: str) -> None:
    """Check that ``cfg`` is a ``dict(type=...)``.

    Raises:
        ValueError: If not; the message gives the value and ``example``.
    """
    if not isinstance(cfg, Mapping) or not isinstance(cfg.get('type'), (str, type)):
        raise ValueError(f'{name}={cfg!r} must be a dict with a type, such as {example}')


def check_tolerance(tolerance: float | None) -> None:
    """Check that a tolerance is None or a positive, finite number.

    Raises:
        ValueError: If not.
    """
    if tolerance is not None and not is_positive(tolerance):
        raise ValueError(
            f'tolerance={tolerance!r} must be positive and finite: the largest relative '
            "difference, such as 1e-4; None means the default for the weights' dtype"
        )


def check_size(name: str, size: Any) -> None:
    """Check that ``size`` is (height, width) in pixels.

    Raises:
        ValueError: If not; the message gives the value.
    """
    pair = size if isinstance(size, Sequence) and not isinstance(size, str) else ()
    if len(pair) != 2 or not all(is_integer(length, 1) for length in pair):
        raise ValueError(f'{name}={size!r} must be (height, width) in pixels, both at least 1')


def check_windows(test_cfg: Mapping[str, Any] | None) -> None:
    """Check that sliding windows cover an image.

    Args:
        test_cfg: Of a segmentor; sizes are (height, width) in pixels.

    Raises:
        ValueError: If a size is missing or invalid, or the windows leave gaps.
    """
    given = test_cfg or {}
    for key in ('crop_size', 'stride'):
        if given.get(key) is not None or given.get('mode') == 'slide':
            check_size(f'model.test_cfg.{key}', given.get(key))
    if given.get('mode') == 'slide':
        crop, stride = tuple(given['crop_size']), tuple(given['stride'])
        if any(step > side for step, side in zip(stride, crop, strict=True)):
            raise ValueError(
                f'model.test_cfg.stride={stride} is larger than crop_size={crop}: the windows '
                'leave gaps; give a stride of at most the crop size (two thirds of it is usual)'
            )


def check_model(cfg: Any) -> None:
    """Check that a config can be run, before anything is built.

    Args:
        cfg: mmengine's ``Config``.

    Raises:
        ValueError: If there is no model, or the windows of ``test_cfg`` do not cover an image.
    """
    if 'model' not in cfg:
        raise ValueError(
            f'{cfg.filename or "the config"} has no model: give the config of a whole model, '
            'not one of the parts in configs/_base_'
        )
    check_windows(cfg.model.get('test_cfg'))


def check_crops(loader: str, pipeline: Sequence[Any]) -> None:
    """Check the crop sizes in a data pipeline.

    Raises:
        ValueError: If one is invalid; the message names the loader and the transform.
    """
    for transform in pipeline:
        size = transform.get('crop_size') if isinstance(transform, Mapping) else None
        is_share = size is not None and 'relative' in transform.get('crop_type', '')  # mmdet's
        if size is not None and not is_share:
            pair = (size, size) if isinstance(size, Integral) else size
            check_size(f'{loader}: crop_size of {transform.get("type")}', pair)
