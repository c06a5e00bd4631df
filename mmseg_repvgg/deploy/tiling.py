"""Sliding windows over an image, placed and averaged as mmseg's ``slide_inference`` does.

Needs numpy only. A network with a fixed input size runs on windows of a larger image, ``stride``
pixels apart. The last window of a row or column is shifted back so that it ends at the border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

Pair = tuple[int, int]  # height, width
Network = Callable[[np.ndarray], np.ndarray]  # (N, K, h, w) -> (N, C, h, w) or (N, h, w)


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one side of the image.

    Args:
        length: Length of the side in pixels, at least ``window``.
        window: Length of a window.
        stride: Pixels from one window to the next.

    Raises:
        ValueError: If ``stride`` would leave pixels out.
    """
    if not 1 <= stride <= window:
        raise ValueError(
            f'a stride of {stride} pixels must be at least 1 and at most the window, {window}: '
            'otherwise no window covers some of the pixels'
        )
    assert length >= window
    count = -(-(length - window) // stride) + 1
    return [min(index * stride, length - window) for index in range(count)]


def pad_to_window(image: np.ndarray, size: Pair, value: np.ndarray | float = 0) -> np.ndarray:
    """Pad an image (K, H, W) below and to the right until a window fits.

    Args:
        image: Float32.
        size: Size of a window.
        value: Value of the new pixels, (K, 1, 1) or a number.
    """
    channels, height, width = image.shape
    below, right = max(size[0] - height, 0), max(size[1] - width, 0)
    if not (below or right):
        return image
    padded = np.empty((channels, height + below, width + right), image.dtype)
    padded[:] = value
    padded[:, :height, :width] = image
    return padded


def refuse_small_image(shape: Sequence[int], size: Pair) -> None:
    """Raise for an image of ``shape`` (height, width) that is smaller than a window of ``size``.

    Raises:
        ValueError: Always; names both sizes and the fix.
    """
    height, width = shape
    raise ValueError(
        f'the image of {height}x{width} pixels is smaller than the windows of the exported model, '
        f'{size[0]}x{size[1]}. mmseg shrinks its windows to the image; a model with a fixed '
        f'size cannot. Export one for such images with --size {min(height, size[0])} '
        f'{min(width, size[1])}, or pad them (pad_small_images=True, tools/predict.py '
        '--pad-small-images), which changes labels near the padding'
    )


def mean_strips(
    network: Network, image: np.ndarray, size: Pair, stride: Pair, batch: int = 1
) -> Iterator[np.ndarray]:
    """Average the logits of all windows that cover a pixel.

    The result comes in strips from top to bottom, each as soon as no further window covers it. So
    an image of any height needs memory only for the logits of one row of windows.

    Args:
        network: Gives logits (N, C, h, w).
        image: (K, H, W), not smaller than a window.
        size: Size of a window.
        stride: Pixels from one window to the next.
        batch: Windows per call of the network.

    Yields:
        Logits (C, rows, W), float32.
    """
    (height, width), (_, _, full_width) = size, image.shape
    top, sums = 0, np.empty(0)
    for y, x, logits in _outputs(network, image, size, stride, batch):
        if not sums.size:
            # the last plane counts the windows
            sums = np.zeros((len(logits) + 1, height, full_width), np.float32)
        if y > top:
            done = y - top
            yield sums[:-1, :done] / sums[-1, :done]
            sums = np.concatenate([sums[:, done:], np.zeros_like(sums[:, :done])], axis=1)
            top = y
        sums[:-1, :, x : x + width] += logits
        sums[-1, :, x : x + width] += 1
    yield sums[:-1] / sums[-1]


def nearest_labels(
    network: Network, image: np.ndarray, size: Pair, stride: Pair, batch: int = 1
) -> np.ndarray:
    """Take each pixel's label from the window with the nearest centre, along each side.

    For networks that end in argmax, because labels cannot be averaged. The nearest window sees the
    most around the pixel.

    Args:
        network: Gives labels (N, h, w).
        image: As :func:`mean_strips`.
        size: As :func:`mean_strips`.
        stride: As :func:`mean_strips`.
        batch: As :func:`mean_strips`.

    Returns:
        Labels (H, W).
    """
    kept = [nearest_pixels(*sides) for sides in zip(image.shape[1:], size, stride, strict=True)]
    merged = np.empty(0)
    for y, x, labels in _outputs(network, image, size, stride, batch):
        if not merged.size:
            merged = np.empty(image.shape[1:], labels.dtype)
        (y1, y2), (x1, x2) = kept[0][y], kept[1][x]
        merged[y1:y2, x1:x2] = labels[y1 - y : y2 - y, x1 - x : x2 - x]
    return merged


def nearest_pixels(length: int, window: int, stride: int) -> dict[int, Pair]:
    """Map the start of each window to its nearest pixels, [first, last + 1).

    Two neighbours meet half-way between their centres; a pixel in the middle goes to the second.
    """
    starts = window_starts(length, window, stride)
    middles = [(one + two + window) // 2 for one, two in pairwise(starts)]
    return dict(zip(starts, zip([0, *middles], [*middles, length], strict=True), strict=True))


def _outputs(
    network: Network, image: np.ndarray, size: Pair, stride: Pair, batch: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (y, x, output) of the windows, row by row."""
    (height, width), (_, full_height, full_width) = size, image.shape
    corners = [
        (y, x)
        for y in window_starts(full_height, height, stride[0])
        for x in window_starts(full_width, width, stride[1])
    ]
    for first in range(0, len(corners), batch):
        group = corners[first : first + batch]
        windows = np.stack([image[:, y : y + height, x : x + width] for y, x in group])
        for (y, x), output in zip(group, network(windows), strict=True):
            yield y, x, output
