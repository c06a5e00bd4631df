"""Read, check and resize images (H, W, C) as in training, with OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (
    *('.avif', '.bmp', '.dib', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pgm', '.png'),
    *('.pnm', '.ppm', '.tif', '.tiff', '.webp'),
)

READING = {
    'color': cv2.IMREAD_COLOR,
    'grayscale': cv2.IMREAD_GRAYSCALE,
    'unchanged': cv2.IMREAD_UNCHANGED,
    'color_ignore_orientation': cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
    'grayscale_ignore_orientation': cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION,
}
"""OpenCV's flags by mmcv's ``color_type``."""


def read_image(path: str | Path, color_type: str = 'color') -> np.ndarray:
    """Read an image file as mmseg's ``LoadImageFromFile`` does.

    By default grey images become BGR, an alpha channel is dropped, 16 bits are scaled to 8, and the
    orientation in the EXIF data is applied.

    Args:
        path: The file.
        color_type: One of :data:`READING`.

    Returns:
        (H, W, 3) uint8, BGR; (H, W) uint8 if grayscale; as in the file if ``'unchanged'``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an image that OpenCV reads.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'image {path} not found')
    # not cv2.imread, which returns None and may fail on names that are not ASCII
    return decode_image(np.fromfile(path, np.uint8), color_type, str(path))


def decode_image(content: np.ndarray, color_type: str = 'color', name: str = 'it') -> np.ndarray:
    """Decode the bytes of an image file, as :func:`read_image` does.

    Args:
        content: (bytes,) uint8.
        color_type: One of :data:`READING`.
        name: Of the file, for errors.

    Raises:
        ValueError: If it is not an image that OpenCV reads.
    """
    try:
        image = cv2.imdecode(content, READING[color_type])
    except cv2.error as error:  # an empty file, or more pixels than OpenCV's limit
        raise ValueError(f'{name} cannot be read: {error.err}') from error
    if image is None:
        raise ValueError(f'{name} is not an image that OpenCV reads: another format, or damaged')
    return image


def as_bgr(image: np.ndarray) -> np.ndarray:
    """Check an image array and convert it to BGR.

    Args:
        image: uint8, (H, W, 3) BGR; (H, W) or (H, W, 1) grey, repeated; (H, W, 4) BGRA, whose alpha
            is dropped. OpenCV's ``IMREAD_COLOR`` does the same to files.

    Returns:
        (H, W, 3).

    Raises:
        ValueError: On another shape or dtype. The range of 16-bit or float pixels is not guessed.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        what = f'{image.dtype}' if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f'the image is {what}, not a numpy array of uint8, 0 to 255; convert it: 16 bits with '
            '(image // 257).astype(np.uint8), a PIL image in RGB with np.array(image)[:, :, ::-1]'
        )
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f'the image has the shape {image.shape}; it must be (H, W, 3) in BGR, (H, W, 4) in '
            'BGRA or (H, W) grey, with at least one pixel'
        )
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[:, :, :3]


def as_pixels(image: np.ndarray, channels: int = 3, color_type: str = 'color') -> np.ndarray:
    """Check an image array and convert it to the channels of a network.

    Args:
        image: As :func:`read_image` returns it for this ``color_type``. Colour is converted to grey
            and grey to colour; with ``'unchanged'`` any numeric dtype is allowed.
        channels: How many channels the network takes.
        color_type: One of :data:`READING`.

    Returns:
        (H, W, channels), not always contiguous.

    Raises:
        ValueError: On another shape or dtype.
    """
    if color_type.startswith('color') and channels == 3:
        return as_bgr(image)
    if color_type.startswith('grayscale') and channels == 1:
        return cv2.cvtColor(as_bgr(image), cv2.COLOR_BGR2GRAY)[:, :, None]  # leaves grey as it is
    if not isinstance(image, np.ndarray) or image.dtype.kind not in 'uif':
        raise ValueError(f'the image is {type(image).__name__}, not a numpy array of numbers')
    planes = image[:, :, None] if image.ndim == 2 else image
    if planes.ndim != 3 or planes.shape[2] != channels or 0 in planes.shape:
        raise ValueError(
            f'the image has the shape {image.shape}; the network takes (H, W, {channels}), with at '
            'least one pixel'
        )
    # dtypes that OpenCV can resize
    return planes if planes.dtype in (np.uint8, np.uint16) else planes.astype(np.float32)


def as_picture(image: np.ndarray) -> np.ndarray:
    """Convert any image to a picture for viewing: (H, W, 3) uint8 in BGR.

    Of more than four channels the first three are used. Other dtypes are scaled to 0..255.
    """
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] not in (1, 3, 4):
        image = image[:, :, :3] if image.shape[2] > 4 else image[:, :, :1]
    if isinstance(image, np.ndarray) and image.dtype == np.uint16:
        image = (image // 257).astype(np.uint8)
    elif isinstance(image, np.ndarray) and image.dtype != np.uint8 and image.size:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return as_bgr(image)


def resize_as_tested(
    image: np.ndarray, resize: tuple[int, int] | None, keep_ratio: bool
) -> np.ndarray:
    """Resize an image like mmcv's ``Resize`` in the test pipeline.

    Args:
        image: (H, W, C).
        resize: Width and height; None leaves the image as it is.
        keep_ratio: Keep the aspect ratio; ``resize`` then limits the longer and the shorter side.
    """
    return resize_image(image, tested_size(image.shape[:2], resize, keep_ratio))


def tested_size(
    shape: tuple[int, ...], resize: tuple[int, int] | None, keep_ratio: bool
) -> tuple[int, int]:
    """Height and width that :func:`resize_as_tested` gives an image of this height and width."""
    height, width = shape
    if resize is None:
        return height, width
    if not keep_ratio:
        return resize[1], resize[0]
    factor = min(max(resize) / max(height, width), min(resize) / min(height, width))
    return int(height * factor + 0.5), int(width * factor + 0.5)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, C) to ``size`` (height, width), bilinear."""
    if image.shape[:2] == size:
        return image
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    return resized.reshape(*size, image.shape[2])  # OpenCV drops a single channel


def resize_plane(plane: np.ndarray, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """Resize (H, W) float32 to ``size`` (height, width), bilinear as PyTorch's ``interpolate``."""
    if not align_corners:
        return cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
    for axis, length in enumerate(size):
        last = plane.shape[axis] - 1
        places = np.arange(length, dtype=np.float32) * np.float32(last / max(length - 1, 1))
        low = np.minimum(places.astype(int), max(last - 1, 0))
        share = (places - low).reshape((-1, 1) if axis == 0 else (1, -1))
        one, two = plane.take(low, axis), plane.take(np.minimum(low + 1, last), axis)
        plane = one + (two - one) * share
    return plane
