"""Read and write videos frame by frame with OpenCV, without sound."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from mmseg_repvgg.atomic_files import atomic_file

SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
CODECS = {'.mp4': 'mp4v', '.avi': 'MJPG'}  # by container; OpenCV always has MJPG
FRAMES_A_SECOND = 25.0  # if a video does not say


@dataclass
class Video:
    """An open video."""

    frames: Iterator[np.ndarray]  # (H, W, 3) uint8 BGR
    count: int | None  # of frames in the header, which may be wrong; None: not in the header
    rate: float  # frames a second


@contextmanager
def read_video(path: Path) -> Iterator[Video]:
    """Open a video.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If OpenCV cannot read a frame.
    """
    if not path.is_file():
        raise FileNotFoundError(f'video {path} not found')
    capture = cv2.VideoCapture(str(path))
    try:
        found, first = capture.read()
        if not found:
            raise ValueError(f'{path} is not a video that OpenCV reads: another codec, or damaged')
        count, rate = (capture.get(p) for p in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS))
        yield Video(
            frames=chain([first], _frames(capture)),
            count=int(count) if count > 0 else None,
            rate=rate if math.isfinite(rate) and rate > 0 else FRAMES_A_SECOND,
        )
    finally:
        capture.release()


def write_video(path: Path, frames: Iterator[np.ndarray], rate: float) -> int:
    """Write a video; an error leaves no incomplete file.

    Args:
        path: Its suffix is one of :data:`CODECS`; see :func:`suffix_to_write`.
        frames: (H, W, 3) uint8 BGR, at least one, all of one size. A side with an odd number
            of pixels loses one, because the codec takes only even sides.
        rate: Frames a second.

    Returns:
        The number of frames.

    Raises:
        ValueError: If OpenCV cannot write it.
        OSError: If the disk is full.
    """
    first = next(frames)
    size = first.shape[1::-1]
    with atomic_file(path) as temporary:
        writer = _writer(temporary, rate, size)
        count = 0
        try:
            if not writer.isOpened():
                raise ValueError(
                    f'OpenCV cannot write {path} with {size[0]}x{size[1]} pixels, {rate:g} frames '
                    f'a second. Check that {path.parent} is a folder you may write to; if it '
                    'is, the codec does not support this size or rate'
                )
            for frame in chain([first], frames):
                assert frame.shape == first.shape
                writer.write(frame)
                count += 1
        finally:
            writer.release()
    return count


@cache
def suffix_to_write() -> str:
    """The first of :data:`CODECS` that this OpenCV can write."""
    with tempfile.TemporaryDirectory() as folder:
        for suffix in CODECS:
            writer = _writer(Path(folder) / f'probe{suffix}', FRAMES_A_SECOND, (64, 64))
            opened = writer.isOpened()
            writer.release()
            if opened:
                return suffix
    raise ValueError(f'this OpenCV cannot write videos; tried {", ".join(CODECS)}')


def _writer(path: Path, rate: float, size: tuple[int, ...]) -> cv2.VideoWriter:
    return cv2.VideoWriter(
        str(path), cv2.VideoWriter.fourcc(*CODECS[path.suffix]), rate, (size[0], size[1])
    )


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield frame
