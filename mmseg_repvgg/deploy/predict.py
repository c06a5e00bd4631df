"""Label maps and overlays of an image, a folder of images or a video (tools/predict.py)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.deploy import images, video
from mmseg_repvgg.deploy.segmenter import Segmenter


@dataclass
class Report:
    """What :func:`predict` did."""

    written: list[Path] = field(default_factory=list)  # an overlay each
    failures: list[str] = field(default_factory=list)  # what could not be read, and why
    note: str = ''

    def __str__(self) -> str:
        failed = [f'not read: {failure}' for failure in self.failures]
        done = f'{len(self.written)} of {len(self.written) + len(self.failures)} done'
        return '\n'.join([*failed, f'{done}{self.note}'])


def predict(segmenter: Segmenter, source: Path, out: Path, opacity: float = 0.5) -> Report:
    """Segment an image, all images of a folder and its subfolders, or a video.

    ``a/b.jpg`` of a folder becomes ``a/b.png``, the label map, and ``a/b_overlay.jpg``; two images
    that differ only in their suffix keep it: ``a/b.jpg.png``. A video becomes an overlay video.
    An image that cannot be read is skipped and reported. Progress is shown on a terminal.

    Args:
        segmenter: The model.
        source: An image, a folder or a video.
        out: The folder to write to.
        opacity: Of the colours in overlays.

    Raises:
        FileNotFoundError: If there is no such source.
        ValueError: If there are no images in the folder, the video cannot be read, or on a wrong
            argument.
        OSError: If something cannot be written.
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
    files = find_images(source, out) if source.is_dir() else [source]
    return _predict_images(segmenter, files, folder, out, opacity)


def find_images(folder: Path, out: Path) -> list[Path]:
    """The images in a folder and its subfolders, sorted, without those in ``out`` and hidden ones.

    Raises:
        ValueError: If there are none.
    """
    written = out.resolve()
    found = [
        path
        for path in sorted(folder.rglob('*'))
        if path.suffix.lower() in images.SUFFIXES
        and path.is_file()
        and not path.name.startswith('.')
        and written not in path.resolve().parents
    ]
    if not found:
        raise ValueError(f'{folder} holds no images: {", ".join(images.SUFFIXES)}')
    return found


def _predict_images(
    segmenter: Segmenter, files: Sequence[Path], folder: Path, out: Path, opacity: float
) -> Report:
    report = Report()
    names = Counter(path.with_suffix('') for path in files)
    for path in tqdm(files, unit='image', disable=None):
        try:
            image = images.read_image(path)
        except (ValueError, OSError) as error:
            report.failures.append(str(error))
            continue
        labels = segmenter(image)
        name = path.stem if names[path.with_suffix('')] == 1 else path.name
        target = out / path.relative_to(folder).parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target.with_name(f'{name}.png'), labels)
        overlay = target.with_name(f'{name}_overlay.jpg')
        _write(overlay, segmenter.overlay(image, labels, opacity))
        report.written.append(overlay)
    return report


def _predict_video(segmenter: Segmenter, source: Path, out: Path, opacity: float) -> Report:
    target = out / f'{source.stem}_overlay{video.suffix_to_write()}'
    out.mkdir(parents=True, exist_ok=True)
    with video.read_video(source) as opened:

        def overlays() -> Iterator[np.ndarray]:
            for frame in tqdm(opened.frames, total=opened.count, unit='frame', disable=None):
                yield segmenter.overlay(frame, segmenter(frame), opacity)

        count = video.write_video(target, overlays(), opened.rate)
        of = f' of {opened.count}' if opened.count else ''
    return Report(written=[target], note=f': {count}{of} frames')


def _write(path: Path, image: np.ndarray) -> None:
    encoded, data = cv2.imencode(path.suffix, image)
    if not encoded:  # JPEG takes no more than 65,500 pixels a side
        raise ValueError(
            f'OpenCV cannot write {path} with {image.shape[1]}x{image.shape[0]} pixels'
        )
    with atomic_file(path) as temporary:
        temporary.write_bytes(data.tobytes())
