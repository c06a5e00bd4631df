"""Read and write videos frame by frame with OpenCV, without sound."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import cv2
import numpy as np

from mmseg_repvgg.atomic_files import atomic_file

SUFFIXES = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm', '.wmv')
WRITTEN, CODEC = '.webm', 'VP80'
"""Container and codec that browsers play and OpenCV's packages on PyPI write. They have no encoder
for H.264; browsers do not play MPEG-4 Part 2; encoding VP9 takes five times as long."""
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
    """Write a video, VP8 in WebM, and count its frames; an error leaves no incomplete file.

    Args:
        path: A name that ends in :data:`WRITTEN`.
        frames: (H, W, 3) uint8 BGR, at least one, all of one size. A side with an odd number
            of pixels loses one, because the codec takes only even sides.
        rate: Frames a second.

    Returns:
        The number of frames.

    Raises:
        ValueError: If OpenCV cannot write it, or cannot read all frames back.
        OSError: If the disk is full.
    """
    first = next(frames)
    size = first.shape[1], first.shape[0]
    with atomic_file(path) as temporary:
        fourcc = cv2.VideoWriter.fourcc(*CODEC)
        writer = cv2.VideoWriter(str(temporary), fourcc, rate, size)
        count = 0
        try:
            if not writer.isOpened():
                raise ValueError(
                    f'OpenCV {cv2.__version__} cannot write {path} with {size[0]}x{size[1]} '
                    f'pixels, {rate:g} frames a second. Check that {path.parent} is a folder you '
                    'may write to. If it is, this OpenCV has no encoder for VP8 in WebM, which '
                    'opencv-python and opencv-python-headless of PyPI have; or the codec does not '
                    'support this size or rate: segment the frames as a folder of images'
                )
            for frame in chain([first], frames):
                assert frame.shape == first.shape
                writer.write(frame)
                count += 1
        finally:
            writer.release()
        if (readable := count_frames(temporary)) != count:
            raise ValueError(
                f'{path} was not written: OpenCV reads {readable} of its {count} frames back. '
                f'Check the free space in {path.parent}, or segment the frames as images'
            )
    return count


def count_frames(path: Path) -> int:
    """Decode a video and count its frames; 0 if it cannot be read."""
    capture = cv2.VideoCapture(str(path))
    try:
        return sum(iter(capture.grab, False))
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        found, frame = capture.read()
        if not found:
            return
        yield frame
