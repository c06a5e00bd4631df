"""Images as a service gets them -> (H, W, 3) uint8 in BGR, what OpenCV reads in training too."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as mmseg's ``LoadImageFromFile`` does.

    Grey images become BGR, an alpha channel is dropped, 16 bits are scaled to 8, and the
    orientation that a camera noted is applied.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image that OpenCV reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'image {path} not found')
    try:
        # not cv2.imread, which returns None and may fail on names that are not ASCII
        image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:  # an empty file, more pixels than OpenCV's limit
        raise ValueError(f'{path} cannot be read: {error.err}') from error
    if image is None:
        raise ValueError(f'{path} is not an image that OpenCV reads: another format, or damaged')
    return image


def as_bgr(image: np.ndarray) -> np.ndarray:
    """Check an array and give it three channels.

    Args:
        image: uint8, (H, W, 3) BGR; (H, W) or (H, W, 1) grey, repeated; (H, W, 4) BGRA, whose alpha
            is dropped. Just what OpenCV's ``IMREAD_COLOR`` makes of such files.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: On another shape or dtype. A range of 16-bit or float pixels is not guessed.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        what = f'{image.dtype}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f'the image is {what}, not a numpy array of uint8, 0 to 255; convert it, as 16 bits '
            'with (image // 257).astype(np.uint8)'
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f'the image has the shape {image.shape}; it must be (H, W, 3) in BGR, (H, W, 4) in '
            'BGRA or (H, W) grey, with at least one pixel'
        )
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]
