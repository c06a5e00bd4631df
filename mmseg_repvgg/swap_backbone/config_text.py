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


def written(value: Any, used: int = 0, depth: int = 0, width: float = WIDTH) -> str:
    """Format a value made of dictionaries, lists, tuples and plain values.

    Args:
        value: The value.
        used: Characters that are already on the first line.
        depth: Indentation level.
        width: Longest line; infinite for a value on one line.
    """
    if isinstance(value, Mapping):
        named = all(isinstance(key, str) and key.isidentifier() for key in value)
        start, end = ('dict(', ')') if named else ('{', '}')
        items = [(f'{key}=' if named else f'{key!r}: ', item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        start, end = '[]' if isinstance(value, list) else '()'
        items = [('', item) for item in value]
    elif isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    else:
        return repr(value)
    comma = ',' if isinstance(value, tuple) and len(value) == 1 else ''
    parts = [head + written(item, width=math.inf) for head, item in items]
    line = f'{start}{", ".join(parts)}{comma}{end}'
    if not value or len(line) + used + 1 <= width:
        return line
    pad = INDENT * (depth + 1)
    lines = [
        f'{pad}{head}{written(item, len(pad) + len(head), depth + 1)},\n' for head, item in items
    ]
    return f'{start}\n{"".join(lines)}{INDENT * depth}{end}'
