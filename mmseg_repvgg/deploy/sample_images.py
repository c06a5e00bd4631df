"""Images to compare an exported model with PyTorch on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS

from mmseg_repvgg.datasets.demo_scenes import compose_scene
from mmseg_repvgg.deploy.image_pipeline import Preparation, first_test_set
from mmseg_repvgg.deploy.images import as_pixels, read_image, resize_as_tested

TRIED = 10
"""How many images of a test set are tried until one can be read."""


@dataclass(frozen=True)
class Sample:
    """An image to compare an exported model on."""

    image: np.ndarray  # (H, W, channels) in BGR, as it is in its file
    name: str  # for reports
    tested_size: tuple[int, int] | None  # height, width as the network sees it; None: not known

    @classmethod
    def of(cls, cfg: Config, preparation: Preparation, channels: int) -> Sample:
        """The first test image that can be read, or a demo scene if there is none.

        Labels are not needed.

        Args:
            cfg: The config.
            preparation: How images are read.
            channels: How many channels an image has.
        """
        for index, path in enumerate(islice(image_paths(cfg), TRIED)):
            try:
                image = read_pixels(path, preparation, channels)
            except (ValueError, OSError):
                continue
            name = 'the first test image' if not index else f'test image {index}'
            tested = resize_as_tested(image, preparation.resize, preparation.keep_ratio)
            return cls(image, name, (tested.shape[0], tested.shape[1]))
        return cls(demo_scene(channels), 'a demo scene', None)


def read_pixels(path: str, preparation: Preparation, channels: int) -> np.ndarray:
    """Read an image as the test pipeline does: (H, W, channels) in BGR."""
    color_type = preparation.color_type
    return as_pixels(read_image(path, color_type), channels, color_type)


def demo_scene(channels: int) -> np.ndarray:
    """A drawn street scene of 512x256 pixels: (256, 512, channels) uint8 in BGR."""
    scene, _ = compose_scene(np.random.default_rng(0), 512, 256)
    planes = [scene[..., 2 - channel % 3] for channel in range(channels)]
    return np.stack(planes, axis=-1)


def image_paths(cfg: Config) -> Iterator[str]:
    """Yield the image files of a config's test set; none if the data are not there."""
    settings = first_test_set(cfg)
    if not settings:
        return
    try:
        dataset = build_test_set(settings)
        count = len(dataset)
    except Exception:  # custom data sets may raise anything, and images are optional
        return
    for index in range(count):
        path = dataset.get_data_info(index).get('img_path')
        if path:
            yield path


def build_test_set(settings: Any, **changes: Any) -> Any:
    """Build a data set of a config with an empty pipeline."""
    return DATASETS.build(dict(settings, pipeline=[], **changes))


def resized(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(H, W, C) -> (*size, C)."""
    planes = cv2.resize(np.ascontiguousarray(image), (size[1], size[0]))
    return planes.reshape(*planes.shape[:2], image.shape[2])  # OpenCV drops a single channel
