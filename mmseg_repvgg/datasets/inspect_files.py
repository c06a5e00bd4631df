"""Reads pairs of image and label map, and collects what does not fit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from mmseg_repvgg.checks import preview
from mmseg_repvgg.datasets.data_report import DataReport

if TYPE_CHECKING:
    from mmseg_repvgg.engine.label_readers import LabelReader

CONVERT = 'mmseg-repvgg convert-masks'
_ORIENTATION = 0x0112  # the tag in EXIF data; from 5 on, the image is turned by 90 degrees


class PairReader:
    """Reads pairs of image and label map, and collects what does not fit.

    Args:
        report: What is found is added to it.
        loader: The transform that loads label maps.
        readers: The heads and metrics that read them.
        own_images: Whether a transform of the user loads the images, from files of any kind: they
            are not read here.
    """

    def __init__(
        self,
        report: DataReport,
        loader: Any,
        readers: Sequence[LabelReader],
        own_images: bool = False,
    ) -> None:
        self.report, self.loader, self.readers = report, loader, readers
        self.own_images = own_images
        self.faults: dict[str, list[str]] = defaultdict(list)  # what is wrong -> files
        self.unknown: dict[str, list[int]] = {}  # label map -> ids that some reader does not know

    def read_all(self, samples: Sequence[dict[str, Any]], limit: int | None, show: bool) -> None:
        """Read some or all pairs, and add what was found to the report."""
        count = len(samples)
        chosen = (
            {i * count // min(limit, count) for i in range(min(limit, count))}
            if limit
            else set(range(count))
        )
        for index in tqdm(sorted(chosen), self.report.name, disable=None if show else True):
            self._read(samples[index], decode=limit is None)
        for index in sorted(set(range(count)) - chosen):
            if not self._only_0_and_ignored():
                break  # other ids were seen
            self._read(samples[index], decode=False)
        self._report()

    def _read(self, sample: dict[str, Any], decode: bool) -> None:
        """Read a pair; ``decode`` also decodes the image, to find damaged ones."""
        path, mask = sample['img_path'], sample['seg_map_path']
        try:
            size = None if self.own_images else _image_size(path, decode)
            path = mask
            with Image.open(mask) as opened:
                is_deep = opened.mode.startswith(('I', 'F')) and int(np.max(opened)) > 255
            labels = self.loader.transform(dict(sample, seg_fields=[]))['gt_seg_map']
        except Exception as error:  # Pillow raises errors of many types for broken files
            is_other = isinstance(error, Image.UnidentifiedImageError)
            reason = 'not an image' if is_other else str(error).partition(' (')[0]
            self.faults[f'cannot be read ({reason}): replace it, or remove the pair'].append(path)
            return
        if size:
            self.report.sizes[size] += 1
        if labels.ndim != 2:
            self.faults[
                f'has colours or several channels, shape {labels.shape}; a label map has one '
                f'channel with the ids of the classes. Convert it: {CONVERT} MASKS OUT --table '
                'colours.txt'
            ].append(mask)
            return
        if is_deep:
            self.faults[
                f'has ids above 255, which mmseg reads modulo 256. Convert it: {CONVERT}'
            ].append(mask)
        if size and labels.shape != size[::-1]:
            self.faults[
                f'is {labels.shape[1]}x{labels.shape[0]} for an image of {size[0]}x{size[1]}; a '
                'label map must be as large as its image (resize it by nearest neighbour)'
            ].append(mask)
        else:
            self.report.samples.append(sample)
        self._count(mask, labels)

    def _count(self, mask: str, labels: np.ndarray) -> None:
        if labels.dtype == np.uint8:
            counts = np.bincount(labels.ravel(), minlength=256)  # faster than sorting
            found = {int(label): int(counts[label]) for label in np.flatnonzero(counts)}
        else:
            found = dict(
                zip(*map(np.ndarray.tolist, np.unique(labels, return_counts=True)), strict=True)
            )
        self.report.pixels.update(found)
        self.report.masks.update(found.keys())
        if wrong := [i for i in found if not all(reader.knows(i) for reader in self.readers)]:
            self.unknown[mask] = wrong
            if mask.lower().endswith(('.jpg', '.jpeg')):
                self.faults['is a JPEG, which blurs ids. Make masks again as PNG'].append(mask)

    def _only_0_and_ignored(self) -> bool:
        seen, ignored = set(self.report.pixels), self.report.ignored
        return 0 in seen and bool(seen & ignored) and seen <= ignored | {0}

    def _report(self) -> None:
        report = self.report
        for text, files in self.faults.items():
            others = f' (and {len(files) - 1} others)' if len(files) > 1 else ''
            report.problems.append(f'{files[0]}{others} {text}')
        if self.unknown:
            mask, ids = next(iter(self.unknown.items()))
            reader = next(r for r in self.readers if not all(map(r.knows, ids)))
            every = sorted({i for wrong in self.unknown.values() for i in wrong})
            report.problems.append(
                f'{mask} has the ids {preview(ids, 5)}; {reader} (unknown ids in '
                f'{len(self.unknown)} of {len(report.samples)} masks: {preview(every, 5)}). '
                f'Convert the labels ({CONVERT}; Cityscapes: mmseg-repvgg prepare-cityscapes PATH '
                '--force), or name all classes, or if it is void, set ignore_index of all heads '
                'and evaluators and seg_pad_val'
            )
        if self._only_0_and_ignored():
            found = ' and '.join(map(str, sorted(report.pixels)))
            report.problems.append(
                f'all {len(report.samples)} masks hold only {found}, and what is not 0 is ignored: '
                f'nothing is learned. If 255 is the foreground, make it 1: {CONVERT} MASKS OUT '
                '--binary'
            )


def _image_size(path: str, decode: bool) -> tuple[int, int]:
    """Width and height of an image as OpenCV reads it.

    Raises:
        OSError: If the file is damaged.
    """
    try:
        opened = Image.open(path)
    except Image.UnidentifiedImageError:
        image = cv2.imread(path, cv2.IMREAD_UNCHANGED)  # reads TIFFs that Pillow does not
        if image is None:
            raise
        return image.shape[1], image.shape[0]
    with opened:
        if decode:
            opened.load()
        width, height = opened.size
        turned = opened.getexif().get(_ORIENTATION, 1) >= 5
    return (height, width) if turned else (width, height)
