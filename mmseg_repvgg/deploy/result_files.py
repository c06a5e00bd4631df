"""Label maps and overlays as image files, marked as results with how they were made."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.deploy.model_description import ModelDescription

MARK = 'mmseg_repvgg predict'
"""In the comment of every result. Files with it may be overwritten, and are not segmented."""

LABEL_FORMATS = ('palette', 'indices', 'cityscapes-ids', 'none')
"""How label maps are saved: see docs/deploy.md."""

CITYSCAPES_IDS = {
    **dict(road=7, sidewalk=8, building=11, wall=12, fence=13, pole=17),
    **{'traffic light': 19, 'traffic sign': 20},
    **dict(vegetation=21, terrain=22, sky=23, person=24, rider=25, car=26, truck=27, bus=28),
    **dict(train=31, motorcycle=32, bicycle=33),
}
"""The classes in the order of their trainIds, and their ids: cityscapesscripts, helpers/labels.py.
"""


def check_label_format(label_format: str, info: ModelDescription) -> None:
    """Check that the label maps of a model can be saved in a format.

    Raises:
        ValueError: If it is not one of :data:`LABEL_FORMATS`, or the classes are not Cityscapes'.
    """
    if label_format not in LABEL_FORMATS:
        raise ValueError(f'save_labels={label_format!r} must be one of {", ".join(LABEL_FORMATS)}')
    if label_format == 'cityscapes-ids' and info.classes != tuple(CITYSCAPES_IDS):
        raise ValueError(
            "save_labels='cityscapes-ids' needs a model with the 19 classes of Cityscapes, road to "
            f"bicycle; this one's are {', '.join(info.classes)}: use 'palette' or 'indices'"
        )


def label_image(labels: np.ndarray, label_format: str, info: ModelDescription) -> Image.Image:
    """A label map as an image to be saved.

    Args:
        labels: (H, W) uint8 or uint16.
        label_format: One of :data:`LABEL_FORMATS`, but not 'none'. A palette has no more than 256
            colours; models with more classes get 16-bit indices instead.
        info: Of the model.
    """
    if label_format == 'cityscapes-ids':
        return Image.fromarray(np.array([*CITYSCAPES_IDS.values()], np.uint8)[labels])
    image = Image.fromarray(labels)
    if label_format == 'palette' and labels.dtype == np.uint8:
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(info.palette)] = info.palette
        image.putpalette(palette.tobytes())
    return image


def encode_image(image: Image.Image, suffix: str, mark: str) -> bytes:
    """The content of an image file, PNG or by another suffix JPEG, with ``mark`` as its comment."""
    content, comment = io.BytesIO(), PngInfo()
    if suffix == '.png':
        comment.add_text('Comment', mark)
        image.save(content, 'PNG', pnginfo=comment)
    else:
        image.save(content, 'JPEG', quality=95, comment=mark)
    return content.getvalue()


def write_result(path: Path, image: Image.Image, mark: str) -> None:
    """Write an image file, JPEG or PNG by its suffix, with ``mark`` as its comment.

    Raises:
        OSError: If it cannot be written.
    """
    content = encode_image(image, path.suffix, mark)
    with atomic_file(path) as temporary:
        temporary.write_bytes(content)


def has_mark(path: Path, mark: str = MARK) -> bool:
    """Whether a file can be read and has this mark, which :func:`write_result` puts first."""
    try:
        with path.open('rb') as stream:
            return mark.encode() in stream.read(1024)
    except OSError:
        return False
