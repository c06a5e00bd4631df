"""A legend beneath an overlay: colour, name and share of the classes in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX


def add_legend(
    picture: np.ndarray,
    counts: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    fixed_height: bool = False,
) -> np.ndarray:
    """Put a legend beneath a picture.

    It has the classes that are in the picture, in the order of ``classes``. Its letters grow with
    the width of the picture; a picture narrower than an entry gets a white margin on the right.

    Args:
        picture: (H, W, 3) uint8, BGR.
        counts: (len(classes),), the number of pixels of each class.
        classes: Their names. OpenCV 4 draws ASCII only, OpenCV 5 most scripts.
        palette: Their colours, RGB.
        fixed_height: For the frames of a video: make room for all classes, but for no more than
            half the height of the picture; if they do not all fit, the smallest are left out.

    Returns:
        (H + height of the legend, W or more, 3) uint8, BGR.
    """
    height, width = picture.shape[:2]
    scale = min(max(width / 1600, 0.4), 1.6)
    thickness, line = max(round(scale), 1), round(40 * scale)
    names = [' '.join(name.split()) for name in classes]
    sizes = (cv2.getTextSize(f'{name} 100.0 %', FONT, scale, thickness)[0] for name in names)
    entry = max(size[0] for size in sizes) + 2 * line
    columns = max(width // entry, 1)
    shown = np.flatnonzero(counts)
    if fixed_height:
        rows = min(math.ceil(len(names) / columns), max(height // 2 // line, 1))
        largest = np.argsort(-counts[shown], kind='stable')[: rows * columns]
        shown = shown[np.sort(largest)]
    else:
        rows = math.ceil(len(shown) / columns)

    canvas = np.full((height + rows * line, max(width, entry), 3), 255, np.uint8)
    canvas[:height, :width] = picture
    for place, index in enumerate(map(int, shown)):
        row, column = divmod(place, columns)
        left, top = column * entry + line // 4, height + row * line + line // 4
        corner = (left + line // 2, top + line // 2)
        red, green, blue = map(int, palette[index])
        cv2.rectangle(canvas, (left, top), corner, (blue, green, red), cv2.FILLED)
        cv2.rectangle(canvas, (left, top), corner, (0, 0, 0), 1)
        share = 100 * counts[index] / counts.sum()
        text = f'{names[index]} {share:.1f} %' if share >= 0.05 else f'{names[index]} < 0.1 %'
        place_of_text = (left + line * 3 // 4, corner[1])
        cv2.putText(canvas, text, place_of_text, FONT, scale, (0, 0, 0), thickness, cv2.LINE_AA)
    return canvas
