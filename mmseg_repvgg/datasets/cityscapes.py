"""Makes Cityscapes label images with train ids from the polygons or label ids of the data set.

Cityscapes comes with polygons (``*_gtFine_polygons.json``) and label ids
(``*_gtFine_labelIds.png``); training needs train ids (``*_gtFine_labelTrainIds.png``): 0 to 18, and
255 for ignored pixels. Source of the numbers and of the polygon renderer: cityscapesscripts,
``helpers/labels.py`` and ``preparation/json2labelImg.py``.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.labels import labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.datasets.jobs import run_jobs

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIX = '_leftImg8bit.png'
POLYGONS_SUFFIX = '_gtFine_polygons.json'
LABEL_IDS_SUFFIX = '_gtFine_labelIds.png'
TRAIN_IDS_SUFFIX = '_gtFine_labelTrainIds.png'

_IGNORED = 255
_SHOWN = 3  # names listed in a message
_ZIPS = {'leftImg8bit': 'leftImg8bit_trainvaltest.zip', 'gtFine': 'gtFine_trainvaltest.zip'}
_DOWNLOAD = (
    'https://www.cityscapes-dataset.com/downloads (or with csDownload, of cityscapesscripts)'
)


@dataclass(frozen=True)
class SplitReport:
    """What was found and done in one split.

    Attributes:
        made: label images written.
        skipped: images whose label image was there already.
        unlabelled: images without a label image, because they have no annotation.
        missing: one message for each kind of thing that is missing.
    """

    made: int
    skipped: int
    unlabelled: int
    missing: tuple[str, ...]

    @property
    def images(self) -> int:
        """Number of images in the split."""
        return self.made + self.skipped + self.unlabelled


@dataclass(frozen=True)
class PreparationReport:
    """What was found and done, by split; the properties are over all splits."""

    splits: dict[str, SplitReport]

    @property
    def made(self) -> int:
        """Number of label images written."""
        return sum(split.made for split in self.splits.values())

    @property
    def skipped(self) -> int:
        """Number of images whose label image was there already."""
        return sum(split.skipped for split in self.splits.values())

    @property
    def missing(self) -> list[str]:
        """All messages about what is missing."""
        return [message for split in self.splits.values() for message in split.missing]

    @property
    def complete(self) -> bool:
        """Whether train and val, if asked for, have images and all of these have label images."""
        asked = [split for name, split in self.splits.items() if name != 'test']
        return all(split.images > 0 and split.unlabelled == 0 for split in asked)

    def summary(self) -> str:
        """Return a line for each split and one for each thing that is missing."""
        lines = [
            f'{name}: {split.images} images, {split.made} label images made, '
            f'{split.skipped} already there'
            for name, split in self.splits.items()
        ]
        return '\n'.join(lines + self.missing)


def prepare_cityscapes(
    root: str | os.PathLike[str],
    workers: int | None = None,
    force: bool = False,
    splits: Sequence[str] = SPLITS,
) -> PreparationReport:
    """Make the train-id label image of every image, from polygons or else from label ids.

    Existing label images are kept, so a second run is quick. Each is written whole or not at all.
    The test split may have no annotations (they are not public) or be missing.

    Args:
        root: folder that holds ``leftImg8bit`` and ``gtFine``.
        workers: number of processes; None takes one per CPU, at most 8.
        force: make existing label images again.
        splits: some of 'train', 'val', 'test'.

    Returns:
        What was made, skipped and missing in each split.

    Raises:
        FileNotFoundError: ``root``, or ``leftImg8bit`` or ``gtFine`` in it, is not there.
        PermissionError: a folder of ``gtFine`` cannot be written to.
        ValueError: a split is unknown, ``workers`` is less than 1, or an annotation cannot be read
            or has labels that Cityscapes does not know. Label images made before that are kept.
    """
    root = Path(root)
    unknown = [split for split in splits if split not in SPLITS]
    if unknown or isinstance(splits, str):
        raise ValueError(f'splits is {splits!r}, must be a list of some of {", ".join(SPLITS)}')
    _check_layout(root)
    jobs: list[tuple[Path, Path]] = []
    reports = {}
    for split in splits:
        if split != 'test' or (root / 'leftImg8bit' / split).is_dir():
            found, reports[split] = _plan_split(root, split, force)
            jobs += found
    run_jobs(
        _convert, jobs, min(os.cpu_count() or 1, 8) if workers is None else workers, 'label images'
    )
    return PreparationReport(reports)


def write_label_image(polygons: Path, target: Path, encoding: str) -> None:
    """Draw the polygons of a Cityscapes annotation into a label image, with cityscapesscripts.

    Args:
        polygons: ``*_gtFine_polygons.json``.
        target: PNG to write, one channel of 8 bits.
        encoding: 'ids' or 'trainIds'.

    Raises:
        PermissionError: the folder of ``target`` cannot be written to.
        ValueError: the annotation cannot be read, or has a label that Cityscapes does not know.
    """
    said = io.StringIO()
    try:
        with atomic_file(target) as temporary, redirect_stdout(said):
            json2labelImg(str(polygons), str(temporary), encoding)
    except OSError:
        raise
    except SystemExit as error:  # json2labelImg exits on an unknown label
        reason = said.getvalue().strip().partition('\n')[0]
        raise ValueError(
            f'{polygons}: {reason} Allowed are the names in cityscapesscripts/helpers/labels.py'
        ) from error
    except Exception as error:
        raise ValueError(
            f'{polygons} is not a whole Cityscapes annotation ({type(error).__name__}: {error}): '
            f'unpack {_ZIPS["gtFine"]} again'
        ) from error


def convert_label_ids(source: Path, target: Path) -> None:
    """Turn an image of label ids into one of train ids.

    Args:
        source: ``*_gtFine_labelIds.png``, one channel.
        target: PNG to write, one channel of 8 bits.

    Raises:
        PermissionError: the folder of ``target`` cannot be written to.
        ValueError: ``source`` cannot be read, has several channels, or has an id that Cityscapes
            does not know.
    """
    try:
        with Image.open(source) as image:
            ids = np.array(image)
    except Exception as error:  # Pillow raises errors of many types for broken files
        raise ValueError(
            f'{source} is not a whole PNG image ({error}): unpack {_ZIPS["gtFine"]} again'
        ) from error
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f'{source} is an image of shape {ids.shape}, {ids.dtype}; label ids are one channel of '
            'integers. Is it one of the *_gtFine_color.png, renamed?'
        )
    table = _train_id_table()
    known = (ids >= 0) & (ids < len(table))
    train_ids = np.where(known, table[np.where(known, ids, 0)], -1)
    if (train_ids < 0).any():
        value = int(ids[train_ids < 0][0])
        raise ValueError(
            f'{source} has the id {value}, which is not a Cityscapes id (0 to 33): '
            f'is it from another data set? Unpack {_ZIPS["gtFine"]} again'
        )
    with atomic_file(target) as temporary:
        Image.fromarray(train_ids.astype(np.uint8)).save(temporary)


@cache
def _train_id_table() -> np.ndarray:
    """Return the train id, (256,), of each label id in 8 bits; -1 where there is no such label."""
    table = np.full(256, -1, dtype=np.int16)
    for label in labels:
        # The id -1, license plate, is 255 in an image of 8 bits.
        table[label.id % 256] = _IGNORED if label.trainId < 0 else label.trainId
    return table


def _check_layout(root: Path) -> None:
    if not root.is_dir():
        raise FileNotFoundError(
            f'{root} is not a folder: give the one that holds leftImg8bit and gtFine, from '
            f'{_DOWNLOAD}'
        )
    for name, archive in _ZIPS.items():
        if not (root / name).is_dir():
            raise FileNotFoundError(
                f'{root} has no folder {name}: unpack {archive} there, from {_DOWNLOAD}'
            )


def _plan_split(root: Path, split: str, force: bool) -> tuple[list[tuple[Path, Path]], SplitReport]:
    """Return the conversions, (source, target), of a split, and its report once they are done."""
    images = _stems(root / 'leftImg8bit' / split, IMAGE_SUFFIX)
    jobs, without, skipped = [], [], 0
    for image in sorted(images):
        target = root / 'gtFine' / split / f'{image}{TRAIN_IDS_SUFFIX}'
        sources = [
            target.with_name(Path(image).name + suffix)
            for suffix in (POLYGONS_SUFFIX, LABEL_IDS_SUFFIX)
        ]
        source = next((path for path in sources if path.is_file()), None)
        done = target.is_file() and target.stat().st_size > 0
        if done and (source is None or not force):
            skipped += 1
        elif source is None:
            without.append(image)
        else:
            jobs.append((source, target))
    missing = []
    if not images:
        missing.append(
            f'{split}: no image like {root}/leftImg8bit/{split}/<city>/*{IMAGE_SUFFIX}: '
            f'unpack {_ZIPS["leftImg8bit"]} in {root}'
        )
    if without:
        fix = (
            'those of test are not public'
            if split == 'test'
            else f'unpack {_ZIPS["gtFine"]} in {root}'
        )
        missing.append(
            f'{split}: no annotation for {_preview(without)} of {len(images)} images: {fix}'
        )
    annotated = set().union(
        *(_stems(root / 'gtFine' / split, suffix) for suffix in (POLYGONS_SUFFIX, LABEL_IDS_SUFFIX))
    )
    if annotated - images:
        missing.append(f'{split}: no image for {_preview(sorted(annotated - images))} annotations')
    return jobs, SplitReport(len(jobs), skipped, len(without), tuple(missing))


def _stems(folder: Path, suffix: str) -> set[str]:
    """Return ``city/name`` of all files ``city/name<suffix>`` in a folder."""
    return {
        f'{path.parent.name}/{path.name[: -len(suffix)]}'
        for path in folder.glob(f'*/[!.]*{suffix}')
    }


def _preview(names: Sequence[str]) -> str:
    """Return the number of names and the first few of them."""
    more = ', ...' if len(names) > _SHOWN else ''
    return f'{len(names)} ({", ".join(names[:_SHOWN])}{more})'


def _convert(source: Path, target: Path) -> None:
    if source.name.endswith(POLYGONS_SUFFIX):
        write_label_image(source, target, 'trainIds')
    else:
        convert_label_ids(source, target)
