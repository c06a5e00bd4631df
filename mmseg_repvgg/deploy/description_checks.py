"""Checks of the values in the description of an exported model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, NamedTuple

from mmseg_repvgg.checks import is_integer

COLOR_TYPES = (
    *('color', 'grayscale', 'unchanged'),
    *('color_ignore_orientation', 'grayscale_ignore_orientation'),
)
"""mmcv's names for how image files are read."""


PRECISIONS = ('fp32', 'fp16', 'int8')


class Check(NamedTuple):
    """What a value must be."""

    is_right: Callable[[Any], bool]
    text: str


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_integer(v, 1) for v in value)


def _are(kind: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, tuple) and all(isinstance(v, kind) for v in value)


def _optional(check: Check) -> Check:
    return Check(lambda value: value is None or check.is_right(value), f'{check.text}, or null')


BOOL = Check(lambda value: isinstance(value, bool), 'true or false')
TEXT = Check(lambda value: isinstance(value, str), 'a text')
TEXTS = Check(_are(str), 'a list of texts')
PAIR = Check(_is_pair, '(height, width) in pixels, both at least 1')
NUMBERS = Check(_are(Real), 'a list of numbers')

CHECKS: Mapping[str, Check] = dict(
    format=TEXT,
    size=PAIR,
    dynamic_batch=BOOL,
    preprocessing_inside=BOOL,
    argmax_inside=BOOL,
    mean=NUMBERS,
    std=NUMBERS,
    to_rgb=BOOL,
    classes=Check(lambda value: _are(str)(value) and len(value) > 0, 'names, at least one'),
    palette=Check(_are(tuple), 'a list of colours: red, green, blue, 0 to 255'),
    stride=_optional(PAIR),
    rewrites=TEXTS,
    source_sha256=TEXT,
    version=TEXT,
    channels=Check(lambda value: is_integer(value, 1), 'an integer, at least 1'),
    color_type=Check(lambda value: value in COLOR_TYPES, f'one of {", ".join(COLOR_TYPES)}'),
    resize=_optional(Check(_is_pair, '(width, height) in pixels, both at least 1')),
    keep_ratio=BOOL,
    align_corners=BOOL,
    threshold=_optional(Check(_is_number, 'a finite number')),
    left_out=TEXTS,
    model_sha256=TEXT,
    precision=Check(lambda value: value in PRECISIONS, f'one of {", ".join(PRECISIONS)}'),
    quantization=_optional(Check(lambda value: isinstance(value, Mapping), 'an object')),
    dynamic_size=BOOL,
)
"""By field of ModelDescription."""


def check_values(values: Mapping[str, Any]) -> None:
    """Check each value by itself, and those that must fit each other.

    Args:
        values: By field of ModelDescription; lists are tuples.

    Raises:
        ValueError: With the first field that is wrong, its value and what is allowed.
    """
    for name, check in CHECKS.items():
        if not check.is_right(values[name]):
            raise ValueError(f'{name}={values[name]!r} must be {check.text}')
    channels, classes = values['channels'], values['classes']
    for name in ('mean', 'std'):
        if len(values[name]) != channels or not all(map(_is_number, values[name])):
            raise ValueError(
                f'{name}={values[name]} must be {channels} finite numbers, one per channel'
            )
    if 0 in values['std']:
        raise ValueError(f'std={values["std"]} must not be 0: images are divided by it')
    for colour in values['palette']:
        if len(colour) != 3 or not all(is_integer(c, 0) and c < 256 for c in colour):
            raise ValueError(f'{colour} of the palette must be red, green, blue: 0 to 255')
    if values['palette'] and len(values['palette']) != len(classes):
        raise ValueError(
            f'palette has {len(values["palette"])} colours for {len(classes)} classes: give one to '
            'each class, or an empty list'
        )
    if values['threshold'] is not None and len(classes) != 2:
        raise ValueError(
            f'threshold={values["threshold"]} is for a model with one logit and two classes, but '
            f'{len(classes)} classes are named'
        )
