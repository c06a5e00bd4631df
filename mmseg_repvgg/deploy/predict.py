"""Label maps and overlays of an image, a folder of images or a video (tools/predict.py)."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from mmseg_repvgg.atomic_files import writable_folder
from mmseg_repvgg.deploy import images, video
from mmseg_repvgg.deploy.legend import add_legend
from mmseg_repvgg.deploy.result_files import (
    MARK,
    check_label_format,
    has_mark,
    label_image,
    write_result,
)
from mmseg_repvgg.deploy.segmenter import Segmenter

LARGEST_JPEG = 60_000  # pixels a side of an image; JPEG allows 65,500, with the legend

LOST_FRAMES = 0.01
"""Largest share of frames that may be missing from a complete video, because headers only estimate
the number of frames."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Report:
    """What :func:`predict` did."""

    out: Path
    written: list[Path] = field(default_factory=list)  # overlays
    failures: list[str] = field(default_factory=list)  # what was not segmented, and why
    skipped: int = 0  # done by an earlier call
    pixels: Counter[str] = field(default_factory=Counter)  # of each class, of what was segmented
    note: str = ''

    def __str__(self) -> str:
        failed = [f'failed: {failure}' for failure in self.failures]
        skipped = f', {self.skipped} skipped (done earlier)' if self.skipped else ''
        done = f'{len(self.written)} done, {len(self.failures)} failed{skipped}{self.note}'
        return '\n'.join([*failed, *share_lines(self.pixels), done, f'results: {self.out}'])


def share_lines(pixels: Counter[str]) -> list[str]:
    """The share of each class in the pixels as a table, the largest first; empty without pixels."""
    total, width = pixels.total(), max(map(len, ['class', *pixels]))
    table = [f'{n:{width}} {100 * c / total:6.2f} %' for n, c in pixels.most_common() if c]
    return [f'{"class":{width}}   pixels', *table] if table else []


def predict(
    segmenter: Segmenter,
    source: Path,
    out: Path,
    opacity: float = 0.5,
    save_labels: str = 'palette',
    legend: bool = True,
    resume: bool = False,
    overwrite: bool = False,
) -> Report:
    """Segment an image, all images of a folder and its subfolders, or a video.

    For ``a/b.jpg`` in a folder, the label map ``a/b.png`` and the overlay ``a/b_overlay.jpg`` are
    written. Images that would get the same names keep their suffix: ``a/b.jpg.png``. For a video,
    an overlay video is written. An image that cannot be segmented is reported and skipped. Results
    of an earlier call are overwritten, other files are not. Progress is shown on a terminal.

    Args:
        segmenter: The model.
        source: An image, a folder or a video.
        out: The folder to write to.
        opacity: Of the colours in overlays.
        save_labels: Format of label maps, one of :data:`.result_files.LABEL_FORMATS`.
        legend: Put a legend beneath overlays.
        resume: Skip images whose results were made by the same model with the same options and are
            not older than the image; a video if its overlay is not older.
        overwrite: Also overwrite files that are no results of an earlier call, and videos, whose
            origin cannot be told. Images that are segmented are never overwritten.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If there are no images in the folder, the video cannot be read, the overlay of a
            video exists, or on a wrong argument.
        OSError: If nothing can be written.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity={opacity} must be from 0 to 1')
    check_label_format(save_labels, segmenter.info)
    if not source.exists():
        raise FileNotFoundError(f'{source} not found; give an image, a folder or a video')
    if out.exists() and not out.is_dir():
        raise ValueError(f'OUT {out} is a file; give a folder')
    job = _Job(segmenter, Report(out), opacity, save_labels, legend, resume, overwrite)
    if source.suffix.lower() in video.SUFFIXES and source.is_file():
        job.segment_video(source)
        return job.report
    folder = source if source.is_dir() else source.parent
    if folder.resolve() == out.resolve():
        raise ValueError(f'OUT {out} holds the images themselves; give another folder')
    if not source.is_dir():
        job.segment_images([source], folder)
        return job.report
    files, results = find_images(source, out)
    job.segment_images(files, folder)
    if results:
        job.report.note = f'; {results} results of an earlier call in {source} were skipped'
    return job.report


def find_images(folder: Path, out: Path) -> tuple[list[Path], int]:
    """The images in a folder and its subfolders, sorted, and how many results were skipped.

    Hidden files are skipped, and ``out`` if it is inside the folder. Results of an earlier call are
    skipped too.

    Raises:
        ValueError: If there are none.
    """
    written, inside = out.resolve(), folder.resolve() in out.resolve().parents
    images_ = [
        path
        for path in sorted(folder.rglob('*'))
        if path.suffix.lower() in images.SUFFIXES
        and path.is_file()
        and not path.name.startswith('.')
        and not (inside and written in path.resolve().parents)
    ]
    found = [path for path in images_ if not has_mark(path)]
    if not found:
        raise ValueError(f'{folder} holds no images: {", ".join(images.SUFFIXES)}')
    return found, len(images_) - len(found)


@dataclass
class _Job:
    """The arguments of :func:`predict`, and what was done so far."""

    segmenter: Segmenter
    report: Report
    opacity: float
    save_labels: str
    legend: bool
    resume: bool
    overwrite: bool

    def __post_init__(self) -> None:
        info = self.segmenter.info
        self.mark = (
            f'{MARK}: model {info.model_sha256 or info.source_sha256}, labels {self.save_labels}, '
            f'opacity {self.opacity}, legend {self.legend}, '
            f'small images padded {self.segmenter.pad_small_images};'
        )
        self.sources: set[Path] = set()

    def segment_images(self, files: Sequence[Path], folder: Path) -> None:
        writable_folder(self.report.out)  # or every image would fail
        self.sources = {path.resolve() for path in files}
        for path, target in progress(_targets(files, folder, self.report.out), unit='image'):
            try:
                self._segment_image(path, target)
            except (ValueError, OSError, RuntimeError, MemoryError, cv2.error) as error:
                if isinstance(error, OSError) and error.errno in NO_SPACE:
                    raise  # the others would fail too
                text = str(error)
                self.report.failures.append(text if str(path) in text else f'{path}: {text}')

    def _segment_image(self, path: Path, target: Path) -> None:
        label_map, *overlays = _result_paths(target)
        if self.resume and self._is_done(path, label_map, overlays):
            self.report.skipped += 1
            return
        image = self.segmenter.read(path)
        overlay = overlays[max(image.shape[:2]) > LARGEST_JPEG]
        for file in [overlay, label_map] if self.save_labels != 'none' else [overlay]:
            self._check_not_lost(file, path)
        labels = self.segmenter(image)
        counts = self._count(labels)
        picture = self._overlay(image, labels, counts)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_result(overlay, Image.fromarray(picture[:, :, ::-1]), self.mark)
        if self.save_labels != 'none':
            map_image = label_image(labels, self.save_labels, self.segmenter.info)
            write_result(label_map, map_image, self.mark)
        self._add(counts)
        self.report.written.append(overlay)

    def _is_done(self, path: Path, label_map: Path, overlays: Sequence[Path]) -> bool:
        def is_current(file: Path) -> bool:
            return has_mark(file, self.mark) and file.stat().st_mtime >= path.stat().st_mtime

        has_labels = self.save_labels == 'none' or is_current(label_map)
        return has_labels and any(map(is_current, overlays))

    def _check_not_lost(self, file: Path, path: Path) -> None:
        """Refuse a result of the image ``path`` that would overwrite a file of the user."""
        if file.resolve() in self.sources:
            reason, remedy = 'an image that is segmented', ''
        elif file.exists() and not self.overwrite and not has_mark(file):
            reason = 'a file that is not the result of an earlier call'
            remedy = 'move that file, overwrite it with --overwrite, or '
        else:
            return
        raise ValueError(
            f'{path}: its result {file} would overwrite {reason}; {remedy}give another OUT folder'
        )

    def segment_video(self, source: Path) -> None:
        report = self.report
        target = report.out / f'{source.stem}_overlay{video.WRITTEN}'
        if target.resolve() == source.resolve():
            raise ValueError(f'{target} would overwrite the video itself; give another OUT folder')
        if target.exists() and not self.overwrite:
            if self.resume and target.stat().st_mtime >= source.stat().st_mtime:
                report.skipped += 1
                return
            raise ValueError(
                f'{target} exists, and may not be the result of an earlier call; move it, '
                'overwrite it with --overwrite, or give another OUT folder'
            )
        writable_folder(report.out)
        with video.read_video(source) as opened:

            def overlays() -> Iterator[np.ndarray]:
                for frame in progress(opened.frames, total=opened.count, unit='frame'):
                    labels = self.segmenter(frame)
                    counts = self._count(labels)
                    self._add(counts)
                    yield self._overlay(frame, labels, counts, is_frame=True)

            count, expected = video.write_video(target, overlays(), opened.rate), opened.count
        frames = f'{count} of {expected} frames' if expected else f'{count} frames'
        if expected and count < expected * (1 - LOST_FRAMES) - 1:
            report.failures.append(
                f'{source} is incomplete: {frames} could be read; {target} holds them'
            )
        else:
            report.written.append(target)
            report.note = f': {frames}, without sound'

    def _overlay(
        self, image: np.ndarray, labels: np.ndarray, counts: np.ndarray, is_frame: bool = False
    ) -> np.ndarray:
        picture, info = self.segmenter.overlay(image, labels, self.opacity), self.segmenter.info
        if not self.legend:
            return picture
        return add_legend(picture, counts, info.classes, info.palette, fixed_height=is_frame)

    def _count(self, labels: np.ndarray) -> np.ndarray:
        return np.bincount(labels.ravel(), minlength=len(self.segmenter.info.classes))

    def _add(self, counts: np.ndarray) -> None:
        self.report.pixels.update(dict(zip(self.segmenter.info.classes, counts, strict=True)))


def progress(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """Show progress if the standard error output is a terminal; services may have closed it."""
    return tqdm(items, disable=True if sys.stderr is None else None, **options)


def _targets(files: Sequence[Path], folder: Path, out: Path) -> list[tuple[Path, Path]]:
    """For each image, a unique path of its results, without suffix."""
    targets = [out / path.relative_to(folder).with_suffix('') for path in files]
    for full in (False, True):
        # lower case, because some file systems ignore case
        counts = Counter(str(name).lower() for target in targets for name in _result_paths(target))
        for index, (path, target) in enumerate(zip(files, targets, strict=True)):
            if any(counts[str(name).lower()] > 1 for name in _result_paths(target)):
                name = f'{path.name}.{index}' if full else path.name
                targets[index] = target.with_name(name)
    return list(zip(files, targets, strict=True))


def _result_paths(target: Path) -> tuple[Path, Path, Path]:
    """Label map, overlay, and overlay of an image that is too large for JPEG."""
    names = (f'{target.name}{end}' for end in ('.png', '_overlay.jpg', '_overlay.png'))
    label_map, overlay, large_overlay = (target.with_name(name) for name in names)
    return label_map, overlay, large_overlay
