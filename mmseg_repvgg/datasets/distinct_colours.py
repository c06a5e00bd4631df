"""Colours that are easy to tell apart, for classes without colours of their own."""

from typing import Any

import matplotlib


def distinct_colours(count: int) -> list[list[int]]:
    """Colours of matplotlib's maps ``tab20``, ``tab20b`` and ``tab20c``, the strong ones first.

    Args:
        count: How many.

    Returns:
        RGB values from 0 to 255. The first 60 are different; after them they begin again.
    """
    maps: Any = matplotlib.colormaps
    pairs = maps['tab20'].colors
    colours = [*pairs[::2], *pairs[1::2], *maps['tab20b'].colors, *maps['tab20c'].colors]
    return [
        [round(255 * part) for part in colours[index % len(colours)][:3]] for index in range(count)
    ]
