"""Colours that are easy to tell apart, for classes without colours of their own."""

import matplotlib


def distinct_colours(count: int) -> list[list[int]]:
    """Colours of matplotlib's maps ``tab20``, ``tab20b`` and ``tab20c``, the strong ones first.

    Args:
        count: How many.

    Returns:
        RGB values from 0 to 255. The first 60 are different; after them they begin again.
    """
    strong, pale, *more = (
        matplotlib.colormaps[name].colors[start::step]
        for name, start, step in (
            ('tab20', 0, 2),
            ('tab20', 1, 2),
            ('tab20b', 0, 1),
            ('tab20c', 0, 1),
        )
    )
    colours = [*strong, *pale, *(colour for part in more for colour in part)]
    return [
        [round(255 * part) for part in colours[index % len(colours)][:3]] for index in range(count)
    ]
