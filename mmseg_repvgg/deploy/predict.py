"""Label maps and overlays of an image, a folder of images or a video (tools/predict.py)."""

from __future__ import annotations

import errno
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from os.path import isfile  # False for a name that is too long
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from mmseg_repvgg.atomic_files import atomic_file, writable_folder
from mmseg_repvgg.deploy import images, video
from mmseg_repvgg.deploy.segmenter import Segmenter

LARGEST_JPEG = 65_500  # pixels a side

LOST_FRAMES = 0.01
"""Largest share of frames that may be missing from a complete video, because headers only estimate
the number of frames."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass
class Report:
    """What :func:`predict` did."""

    written: list[Path] = field(default_factory=list)  # overlays
    failures: list[str] = field(default_factory=list)  # what was not segmented, and why
    note: str = ''

    def __str__(self) -> str:
        failed = [f'failed: {failure}' for failure in self.failures]
        done = f'{len(self.written)} of {len(self.written) + len(self.failures)} done'
        return '\n'.join([*failed, f'{done}{self.note}'])


def predict(segmenter: Segmenter, source: Path, out: Path, opacity: float = 0.5) -> Report:
    """Segment an image, all images of a folder and its subfolders, or a video.

    For ``a/b.jpg`` in a folder, the label map ``a/b.png`` and the overlay ``a/b_overlay.jpg`` are
    written. Images that would get the same names keep their suffix: ``a/b.jpg.png``. For a video,
    an overlay video is written. An image that cannot be segmented is reported and skipped. Existing
    images are not overwritten, except results of an earlier call. Progress is shown on a terminal.

    Args:
        segmenter: The model.
        source: An image, a folder or a video.
        out: The folder to write to.
        opacity: Of the colours in overlays.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If there are no images in the folder, the video cannot be read, or on a wrong
            argument.
        OSError: If nothing can be written.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity={opacity} must be from 0 to 1')
    if not source.exists():
        raise FileNotFoundError(f'{source} not found; give an image, a folder or a video')
    if out.exists() and not out.is_dir():
        raise ValueError(f'OUT {out} is a file; give a folder')
    if source.suffix.lower() in video.SUFFIXES and source.is_file():
        return _predict_video(segmenter, source, out, opacity)
    folder = source if source.is_dir() else source.parent
    if folder.resolve() == out.resolve():
        raise ValueError(f'OUT {out} holds the images themselves; give another folder')
    if not source.is_dir():
        return _predict_images(segmenter, [source], folder, out, opacity)
    files, results = find_images(source, out)
    report = _predict_images(segmenter, files, folder, out, opacity)
    if results:
        report.note += f'; {results} results of an earlier call in {source} were skipped'
    return report


def find_images(folder: Path, out: Path) -> tuple[list[Path], int]:
    """The images in a folder and its subfolders, sorted, and how many results were skipped.

    Hidden files are skipped, and ``out`` if it is inside the folder. Results of an earlier call, a
    label map with an overlay next to it, are skipped too.

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
    found = [path for path in images_ if not _is_result(path)]
    if not found:
        raise ValueError(f'{folder} holds no images: {", ".join(images.SUFFIXES)}')
    return found, len(images_) - len(found)


def _is_result(path: Path) -> bool:
    """Whether an image is a label map or overlay of an earlier call."""
    base = path.with_name(path.stem.removesuffix('_overlay'))
    if path.stem.endswith('_overlay'):
        return isfile(base.with_name(f'{base.name}.png'))
    overlays = (base.with_name(f'{base.name}_overlay{suffix}') for suffix in ('.jpg', '.png'))
    return path.suffix == '.png' and any(map(isfile, overlays))


def _predict_images(
    segmenter: Segmenter, files: Sequence[Path], folder: Path, out: Path, opacity: float
) -> Report:
    report = Report()
    writable_folder(out)  # or every image would fail
    for path, target in _progress(_targets(files, folder, out), unit='image'):
        try:
            report.written.append(_predict_image(segmenter, path, target, opacity))
        except (ValueError, OSError, RuntimeError, MemoryError, cv2.error) as error:
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise  # the others would fail too
            text = str(error)
            report.failures.append(text if str(path) in text else f'{path}: {text}')
    return report


def _progress(items: Iterable[Any], **options: Any) -> Iterable[Any]:
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


def _result_paths(target: Path) -> tuple[Path, Path]:
    return target.with_name(f'{target.name}.png'), target.with_name(f'{target.name}_overlay')


def _predict_image(segmenter: Segmenter, path: Path, target: Path, opacity: float) -> Path:
    """Write the label map and overlay of an image; return the path of the overlay."""
    image = segmenter.read(path)
    labels = segmenter(image)
    suffix = '.jpg' if max(image.shape[:2]) <= LARGEST_JPEG else '.png'
    overlay = target.with_name(f'{target.name}_overlay{suffix}')
    label_map = target.with_name(f'{target.name}.png')
    for file in (overlay, label_map):
        if file.resolve() == path.resolve() or (file.exists() and not _is_result(file)):
            raise ValueError(
                f'{path}: its result {file} would overwrite a file that is not the result of an '
                'earlier call; move that file, or give another OUT folder'
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    _write(overlay, segmenter.overlay(image, labels, opacity))
    _write(label_map, labels)
    return overlay


def _predict_video(segmenter: Segmenter, source: Path, out: Path, opacity: float) -> Report:
    target = out / f'{source.stem}_overlay{video.suffix_to_write()}'
    if target.resolve() == source.resolve():
        raise ValueError(f'{target} would overwrite the video itself; give another OUT folder')
    writable_folder(out)
    with video.read_video(source) as opened:

        def overlays() -> Iterator[np.ndarray]:
            for frame in _progress(opened.frames, total=opened.count, unit='frame'):
                yield segmenter.overlay(frame, segmenter(frame), opacity)

        count, expected = video.write_video(target, overlays(), opened.rate), opened.count
    frames = f'{count} of {expected} frames' if expected else f'{count} frames'
    if expected and count < expected * (1 - LOST_FRAMES) - 1:
        failure = f'{source} is incomplete: {frames} could be read; {target} holds them'
        return Report(failures=[failure])
    return Report(written=[target], note=f': {frames}')


def _write(path: Path, image: np.ndarray) -> None:
    encoded, data = cv2.imencode(path.suffix, image)
    if not encoded:  # JPEG takes no more than 65,500 pixels a side
        raise ValueError(
            f'OpenCV cannot write {path} with {image.shape[1]}x{image.shape[0]} pixels'
        )
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.tobytes())
