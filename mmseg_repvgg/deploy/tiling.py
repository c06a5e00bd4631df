"""Sliding windows over an image, placed and averaged as mmseg's ``slide_inference`` does.

Needs numpy only. A network runs on windows of a larger image, ``stride``
pixels apart. The last window of a row or column is shifted back so that it ends at the border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise, product

import numpy as np

from mmseg_repvgg.deploy.model_description import SMALLEST_OF_ANY, ModelDescription

Pair = tuple[int, int]  # height, width
SMALLEST = 32  # pixels; side of the smallest images that are exported for
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


def check_fits_window(shape: Sequence[int], size: Pair) -> None:
    """Check that an image of ``shape`` (height, width) is not smaller than a window of ``size``.

    Raises:
        ValueError: If it is; names both sizes and the fix.
    """
    (height, width), (window_height, window_width) = shape, size
    if height >= window_height and width >= window_width:
        return
    smaller = min(height, window_height), min(width, window_width)
    export = f'Export one with --dynamic-size or --size {smaller[0]} {smaller[1]}, or pad them'
    raise ValueError(
        f'the image of {height}x{width} pixels is smaller than the windows of the exported model, '
        f'{window_height}x{window_width}. mmseg shrinks its windows to the image; a model with a '
        f'fixed size cannot. {export if min(smaller) >= SMALLEST else "Pad it"} '
        '(pad_small_images=True, or predict --pad-small-images), which changes labels near the '
        'padding'
    )


def fit_windows(shape: Sequence[int], info: ModelDescription) -> tuple[Pair, Pair] | None:
    """Size and stride of the windows on an image, or None if the model takes it whole.

    A model for all sizes shrinks its windows to the image, as mmseg does.

    Args:
        shape: Height and width of the image.
        info: Of the model.

    Raises:
        ValueError: If the image is too small.
    """
    (height, width), size, stride = shape, info.size, info.stride
    if info.dynamic_size:
        if min(height, width) < SMALLEST_OF_ANY:
            raise ValueError(
                f'the image of {height}x{width} pixels is smaller than {SMALLEST_OF_ANY}x'
                f'{SMALLEST_OF_ANY}, the smallest that a model for all sizes takes. Pad it '
                '(pad_small_images=True, or predict --pad-small-images), which changes labels near '
                'the padding'
            )
        size = min(height, size[0]), min(width, size[1])
        stride = stride and (min(size[0], stride[0]), min(size[1], stride[1]))
    elif stride is not None:
        check_fits_window(shape, size)
    return stride and (size, stride)


def mean_logits(
    network: Network, image: np.ndarray, size: Pair, stride: Pair, batch: int = 1
) -> np.ndarray:
    """As :func:`mean_strips`, the whole image at once: logits (C, H, W), float32."""
    logits, top = np.empty(0), 0
    for strip in mean_strips(network, image, size, stride, batch):
        if not top:
            logits = np.empty((len(strip), *image.shape[1:]), np.float32)
        logits[:, top : top + strip.shape[1]] = strip
        top += strip.shape[1]
    return logits


def mean_strips(
    network: Network, image: np.ndarray, size: Pair, stride: Pair, batch: int = 1
) -> Iterator[np.ndarray]:
    """Average the logits of all windows that cover a pixel.

    The result comes in strips from top to bottom, each as soon as no further window covers it. So
    besides the image only the sums of the logits of one row of windows are kept, (C + 1, h, W)
    float32, and ``batch`` windows with their logits, however many windows there are.

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

    Arguments are those of :func:`mean_strips`, but the network gives labels (N, h, w).

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
    rows = window_starts(full_height, height, stride[0])
    corners = product(rows, window_starts(full_width, width, stride[1]))
    while group := list(islice(corners, batch)):
        windows = np.stack([image[:, y : y + height, x : x + width] for y, x in group])
        for (y, x), output in zip(group, network(windows), strict=True):
            yield y, x, output
