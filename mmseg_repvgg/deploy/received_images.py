"""Look at the header of an image from the network, before memory is taken for its pixels."""

from __future__ import annotations

import io
import warnings

from PIL import Image, UnidentifiedImageError


def check_pixels(content: bytes, most: int) -> None:
    """Check that the bytes of an image file are an image of no more than ``most`` pixels.

    A file of a few kilobytes may name gigapixels; only its header is read.

    Raises:
        ValueError: If it is no image that Pillow knows, or has more pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f'the image has more than {most} pixels, the limit') from error
    except UnidentifiedImageError as error:
        raise ValueError('the body is not an image file') from error
    except Exception as error:  # each format of Pillow raises its own type on damaged headers
        raise ValueError(f'the body is not an image file that can be read: {error}') from error
    if width * height > most:
        raise ValueError(
            f'the image of {height}x{width} has {width * height} pixels, more than {most}, the '
            'limit'
        )
