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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.labels import labels
from cityscapesscripts.preparation.json2labelImg import json2labelImg
from PIL import Image

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checks import preview
from mmseg_repvgg.datasets.jobs import run_jobs

SPLITS = ('train', 'val', 'test')
IMAGE_SUFFIX = '_leftImg8bit.png'
POLYGONS_SUFFIX = '_gtFine_polygons.json'
LABEL_IDS_SUFFIX = '_gtFine_labelIds.png'
TRAIN_IDS_SUFFIX = '_gtFine_labelTrainIds.png'

_TRAIN_IDS = np.full(257, -1, dtype=np.int16)
"""The train id of each label id; -1 where there is no such label."""
# in an image of 8 bits, both ids of license plates, -1, are 255
_TRAIN_IDS[[label.id % 256 for label in labels]] = [label.trainId % 256 for label in labels]
_ZIPS = {'leftImg8bit': 'leftImg8bit_trainvaltest.zip', 'gtFine': 'gtFine_trainvaltest.zip'}
_DOWNLOAD = (
    'https://www.cityscapes-dataset.com/downloads (or with csDownload, of cityscapesscripts)'
)


@dataclass
class PreparationReport:
    """What was found and done.

    Attributes:
        made: label images written.
        skipped: images whose label image was there already.
        counts: a line for each split, with the numbers of images.
        missing: a message for each kind of thing that a split lacks.
        complete: whether train and val, if asked for, have images, and these have label images.
    """

    made: int = 0
    skipped: int = 0
    counts: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    complete: bool = True

    def summary(self) -> str:
        """Return a line for each split and one for each thing that is missing."""
        return '\n'.join(self.counts + self.missing)


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
        What was made, skipped and missing.

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
    jobs, report = [], PreparationReport()
    for split in splits:
        if split != 'test' or (root / 'leftImg8bit' / split).is_dir():
            jobs += _plan_split(root, split, force, report)
    run_jobs(
        _convert, jobs, min(os.cpu_count() or 1, 8) if workers is None else workers, 'label images'
    )
    return report


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
    train_ids = _TRAIN_IDS[np.where((ids >= 0) & (ids < 256), ids, 256)]
    if (train_ids < 0).any():
        value = int(ids[train_ids < 0][0])
        raise ValueError(
            f'{source} has the id {value}, which is not a Cityscapes id (0 to 33): '
            f'is it from another data set? Unpack {_ZIPS["gtFine"]} again'
        )
    with atomic_file(target) as temporary:
        Image.fromarray(train_ids.astype(np.uint8)).save(temporary)


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


def _plan_split(
    root: Path, split: str, force: bool, report: PreparationReport
) -> list[tuple[Path, Path]]:
    """Return the conversions, (source, target), of a split; report them as done."""
    truth = root / 'gtFine' / split
    images = _stems(root / 'leftImg8bit' / split, IMAGE_SUFFIX)
    polygons, annotated = _stems(truth, POLYGONS_SUFFIX), _stems(truth, LABEL_IDS_SUFFIX)
    annotated |= polygons
    targets = {image: truth / f'{image}{TRAIN_IDS_SUFFIX}' for image in sorted(images)}
    done = {i for i, path in targets.items() if path.is_file() and path.stat().st_size > 0}
    without = sorted(images - annotated - done)
    jobs = [
        (truth / f'{image}{POLYGONS_SUFFIX if image in polygons else LABEL_IDS_SUFFIX}', target)
        for image, target in targets.items()
        if image in annotated and (force or image not in done)
    ]
    skipped = len(images) - len(jobs) - len(without)
    report.made += len(jobs)
    report.skipped += skipped
    report.counts.append(
        f'{split}: {len(images)} images, {len(jobs)} label images made, {skipped} already there'
    )
    if not images:
        report.missing.append(
            f'{split}: no image like {root}/leftImg8bit/{split}/<city>/*{IMAGE_SUFFIX}: '
            f'unpack {_ZIPS["leftImg8bit"]} in {root}'
        )
    if without:
        unpack = f'unpack {_ZIPS["gtFine"]} in {root}'
        report.missing.append(
            f'{split}: no annotation for {len(without)} ({preview(without)}) of {len(images)} '
            f'images: {"those of test are not public" if split == "test" else unpack}'
        )
    alone = sorted(annotated - images)
    if alone:
        report.missing.append(f'{split}: no image for {len(alone)} ({preview(alone)}) annotations')
    report.complete &= split == 'test' or (bool(images) and not without)
    return jobs


def _stems(folder: Path, suffix: str) -> set[str]:
    """Return ``city/name`` of all files ``city/name<suffix>`` in a folder."""
    return {
        f'{path.parent.name}/{path.name[: -len(suffix)]}'
        for path in folder.glob(f'*/[!.]*{suffix}')
    }


def _convert(source: Path, target: Path) -> None:
    if source.name.endswith(POLYGONS_SUFFIX):
        write_label_image(source, target, 'trainIds')
    else:
        convert_label_ids(source, target)
