"""Config values as Python text, in the style of OpenMMLab's configs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

WIDTH = 100
INDENT = '    '


def assignment(name: str, value: Any) -> str:
    """``name = value``, over several lines if it is long."""
    return f'{name} = {written(value, len(name) + 3)}'


def written(value: Any, used: int = 0, depth: int = 0) -> str:
    """Format a value made of dictionaries, lists, tuples and plain values.

    Args:
        value: The value.
        used: Characters that are already on the first line.
        depth: Indentation level.
    """
    line = _one_line(value)
    if len(line) + used + 1 <= WIDTH or not isinstance(value, (Mapping, list, tuple)) or not value:
        return line
    pad = INDENT * (depth + 1)
    if isinstance(value, Mapping):
        named = _is_named(value)
        start, end = ('dict(', ')') if named else ('{', '}')
        heads = [f'{k}=' if named else f'{k!r}: ' for k in value]
        items = list(value.values())
    else:
        start, end = ('[', ']') if isinstance(value, list) else ('(', ')')
        heads, items = [''] * len(value), list(value)
    lines = [
        f'{pad}{head}{written(item, len(pad) + len(head), depth + 1)},\n'
        for head, item in zip(heads, items, strict=True)
    ]
    return f'{start}\n{"".join(lines)}{INDENT * depth}{end}'


def _one_line(value: Any) -> str:
    if isinstance(value, Mapping):
        if _is_named(value):
            return f'dict({", ".join(f"{k}={_one_line(v)}" for k, v in value.items())})'
        return '{' + ', '.join(f'{k!r}: {_one_line(v)}' for k, v in value.items()) + '}'
    if isinstance(value, list):
        return f'[{", ".join(map(_one_line, value))}]'
    if isinstance(value, tuple):
        return f'({", ".join(map(_one_line, value))}{"," * (len(value) == 1)})'
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    return repr(value)


def _is_named(value: Mapping[Any, Any]) -> bool:
    return all(isinstance(key, str) and key.isidentifier() for key in value)
