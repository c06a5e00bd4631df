"""Change the settings of necks and heads that depend on the maps they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmseg_repvgg.swap_backbone.features import CannotSwapError, FeatureMap, neck_maps

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
    channels, several = head.get('in_channels'), isinstance(head.get('in_channels'), (list, tuple))
    read = _maps_read(head, len(old), where)
    _require_channels(channels if several else [channels], [old[i] for i in read], where)
    changes: dict[str, Any] = {}
    _set(changes, 'in_channels', channels, [new[i].channels for i in read])
    for key in STRIDE_KEYS:
        if key in head:
            _require_strides(head[key], [old[i] for i in read], f'{where}.{key}')
            _set(changes, key, head[key], [new[i].stride for i in read])
    if head.get('c1_in_channels'):  # DeepLabV3+ also reads the first map
        _require_channels([head['c1_in_channels']], old[:1], f'{where}.c1')
        _set(changes, 'c1_in_channels', head['c1_in_channels'], [new[0].channels])
    return changes


def _changed_neck(
    neck: Mapping[str, Any], old: Sequence[FeatureMap], new: Sequence[FeatureMap]
) -> dict[str, Any]:
    channels = neck.get('in_channels')
    if not isinstance(channels, (list, tuple)):
        raise CannotSwapError(
            f'the neck {neck.get("type")} has in_channels={channels}, not one number per map'
        )
    _require_channels(channels, old, f'the neck {neck.get("type")}')
    changes: dict[str, Any] = {}
    _set(changes, 'in_channels', channels, [m.channels for m in new])
    return changes


def _set(changes: dict[str, Any], key: str, before: Any, after: list[int]) -> None:
    """Set what differs and keep its type: mmseg's JPU needs tuples."""
    value = type(before)(after) if isinstance(before, (list, tuple)) else after[0]
    if value != before:
        changes[key] = value


def _maps_read(head: Mapping[str, Any], count: int, where: str) -> list[int]:
    """Indices, out of ``count``, of the maps that a head reads."""
    index, channels = head.get('in_index'), head.get('in_channels')
    if index is None:  # the last map is mmseg's default; Mask2Former's list means all
        index = range(len(channels)) if isinstance(channels, (list, tuple)) else -1
    read = [index] if isinstance(index, int) else list(index)
    if not all(-count <= i < count for i in read):
        raise CannotSwapError(f'{where} has in_index={index}, but there are {count} maps')
    return [i % count for i in read]


def _require_channels(channels: Any, maps: Sequence[FeatureMap], where: str) -> None:
    actual = [m.channels for m in maps]
    if list(channels) != actual:
        raise CannotSwapError(
            f'{where} expects {list(channels)} channels, but the maps that it reads from the '
            f"config's own backbone have {actual}: what it reads is not understood"
        )


def _require_strides(strides: Sequence[int], maps: Sequence[FeatureMap], where: str) -> None:
    actual = [m.stride for m in maps]
    if list(strides) != actual:
        raise CannotSwapError(
            f"{where} is {list(strides)}, but the maps of the config's own backbone have strides "
            f'{actual}: what it means is not understood'
        )


def _check_deepest_is_read(decode_head: Any, count: int) -> None:
    heads = decode_head if isinstance(decode_head, (list, tuple)) else [decode_head]
    heads = [h.get(n) for h in heads for n in NESTED_HEADS if n in h] or heads
    if not any(count - 1 in _maps_read(head, count, 'decode_head') for head in heads):
        raise CannotSwapError(
            f'no decode head reads the last of the {count} maps: the backbone joins its stages by '
            'itself into another map, which RepVGG does not do'
        )
