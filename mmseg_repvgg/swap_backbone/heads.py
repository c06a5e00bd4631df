"""Change the settings of necks and heads that depend on the maps they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmseg_repvgg.swap_backbone.feature_maps import CannotSwapError, FeatureMap, neck_maps

NESTED_HEADS = ('kernel_generate_head',)
"""Heads inside another head that read the maps (K-Net)."""
STRIDE_KEYS = ('feature_strides', 'strides')
"""Settings of heads that hold the strides of the maps they read."""


def changed_model(
    model: Mapping[str, Any], old: Sequence[FeatureMap], new: Sequence[FeatureMap]
) -> dict[str, Any]:
    """The settings of neck and heads that change with the backbone's maps.

    Args:
        model: The config's ``model``.
        old: The maps of its own backbone.
        new: The maps of the new backbone.

    Returns:
        Settings for the child config: only the differences, but whole lists.

    Raises:
        CannotSwapError: If a setting is not understood; names it.
    """
    changes: dict[str, Any] = {}
    neck = model.get('neck')
    if neck is not None:
        changes['neck'] = _changed_neck(neck, old, new)
        old = neck_maps(neck, old)
        new = neck_maps(dict(neck, **changes['neck']), new)
    for name in ('decode_head', 'auxiliary_head'):
        heads = model.get(name)
        if isinstance(heads, Mapping):
            changes[name] = changed_head(heads, old, new, name)
        elif heads:
            # a list cannot be changed in part
            changes[name] = [
                dict(h, **changed_head(h, old, new, f'{name}[{i}]')) for i, h in enumerate(heads)
            ]
    _check_deepest_is_read(model['decode_head'], len(old))
    return {key: value for key, value in changes.items() if value}


def changed_head(
    head: Mapping[str, Any], old: Sequence[FeatureMap], new: Sequence[FeatureMap], where: str
) -> dict[str, Any]:
    """The settings of one head that change.

    Raises:
        CannotSwapError: As :func:`changed_model`.
    """
    for nested in NESTED_HEADS:
        if nested in head:
            return {nested: changed_head(head[nested], old, new, f'{where}.{nested}')}
    read = _maps_read(head, len(old), where)
    before, after = ([maps[i] for i in read] for maps in (old, new))
    changes = _changed(head, 'in_channels', 'channels', before, after, where)
    for key in STRIDE_KEYS:
        if key in head:
            changes |= _changed(head, key, 'stride', before, after, where)
    if head.get('c1_in_channels'):  # DeepLabV3+ also reads the first map
        changes |= _changed(head, 'c1_in_channels', 'channels', old[:1], new[:1], where)
    return changes


def _changed_neck(
    neck: Mapping[str, Any], old: Sequence[FeatureMap], new: Sequence[FeatureMap]
) -> dict[str, Any]:
    where, channels = f'the neck {neck.get("type")}', neck.get('in_channels')
    if not isinstance(channels, (list, tuple)):
        raise CannotSwapError(f'{where} has in_channels={channels}, not one number per map')
    return _changed(neck, 'in_channels', 'channels', old, new, where)


def _changed(
    settings: Mapping[str, Any],
    key: str,
    field: str,
    old: Sequence[FeatureMap],
    new: Sequence[FeatureMap],
    where: str,
) -> dict[str, Any]:
    """What changes in a setting that holds a field of the old maps, as a number or a list."""
    given: Any = settings.get(key)
    before, after = ([getattr(m, field) for m in maps] for maps in (old, new))
    is_list = isinstance(given, (list, tuple))
    if (list(given) if is_list else [given]) != before:
        raise CannotSwapError(
            f"{where} has {key}={given}, but the maps that it reads from the config's own backbone "
            f'have {before}: what the setting means is not understood'
        )
    value = type(given)(after) if is_list else after[0]  # mmseg's JPU needs tuples
    return {} if value == given else {key: value}


def _maps_read(head: Mapping[str, Any], count: int, where: str) -> list[int]:
    """Indices, out of ``count``, of the maps that a head reads."""
    index, channels = head.get('in_index'), head.get('in_channels')
    if index is None:  # the last map is mmseg's default; Mask2Former's list means all
        index = range(len(channels)) if isinstance(channels, (list, tuple)) else -1
    read = [index] if isinstance(index, int) else list(index)
    if not all(-count <= i < count for i in read):
        raise CannotSwapError(f'{where} has in_index={index}, but there are {count} maps')
    return [i % count for i in read]


def _check_deepest_is_read(decode_head: Any, count: int) -> None:
    heads = decode_head if isinstance(decode_head, (list, tuple)) else [decode_head]
    heads = [h.get(n) for h in heads for n in NESTED_HEADS if n in h] or heads
    if not any(count - 1 in _maps_read(head, count, 'decode_head') for head in heads):
        raise CannotSwapError(
            f'no decode head reads the last of the {count} maps: the backbone joins its stages by '
            'itself into another map, which RepVGG does not do'
        )
