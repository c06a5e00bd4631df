"""Exported networks made up for the tests: a function in place of a runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mmseg_repvgg.deploy.model_description import ModelDescription

# mmseg's, for RGB
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)

FOUR = dict(classes=('a', 'b', 'c', 'd'), palette=((0, 0, 0),) * 4)
"""The classes of :func:`by_position`."""

INFO = dict(
    format='onnx',
    size=(8, 12),
    dynamic_batch=True,
    preprocessing_inside=True,
    argmax_inside=False,
    mean=MEAN,
    std=STD,
    to_rgb=True,
    classes=('blue', 'green', 'red'),
    palette=((0, 0, 255), (0, 255, 0), (200, 0, 0)),
    stride=None,
    rewrites=(),
    source_sha256='0' * 64,
    version='0',
)


def described(folder: Path, **info) -> Path:
    """A file that is no model, with the description of one beside it."""
    path = folder / 'model.bin'
    path.write_bytes(b'no model')
    ModelDescription(**{**INFO, **info}).write(path)
    return path


class FakeNetwork:
    """Calls ``function`` on (N, C, h, w) and keeps what it was called with."""

    def __init__(self, function: Callable[[np.ndarray], np.ndarray], **info) -> None:
        self.function = function
        self.inputs: list[np.ndarray] = []
        colours = {'palette': ()} if 'classes' in info else {}  # of INFO's classes
        self.info = ModelDescription(**{**INFO, **colours, **info})

    def __call__(self, images: np.ndarray) -> np.ndarray:
        assert images.dtype == np.float32
        assert images.flags.c_contiguous
        assert images.shape[1] == self.info.channels
        assert self.info.takes_size(*images.shape[2:])
        self.inputs.append(images)
        return self.function(images)


def brightest_channel(images: np.ndarray) -> np.ndarray:
    """Logits that are the channels: the label is the brightest one, of BGR pixels blue is 0."""
    return images.copy()


def by_position(images: np.ndarray) -> np.ndarray:
    """Four logits of the pixel, its place in the window and the mean of the window.

    So they show where windows begin and what else is in them, as the logits of a real network do.
    """
    _, _, height, width = images.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    blue, green, red = images.transpose(1, 0, 2, 3)
    context = images.mean((2, 3)) @ np.float32([0.2, 0.5, 1])  # no sum: it tells BGR from RGB
    place = 10 * y - 5 * x + context[:, None, None]
    logits = blue * (1 + 0.1 * y), green * (2 - 0.05 * x), red + 0.3 * x * y, place
    return np.stack(logits, axis=1)


def labels_of(images: np.ndarray) -> np.ndarray:
    """The labels of :func:`by_position`."""
    return by_position(images).argmax(1)


def draw(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A random image (H, W, channels) uint8; with 0 channels (H, W)."""
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)
