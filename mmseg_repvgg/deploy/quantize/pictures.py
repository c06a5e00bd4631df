"""The images that a network is calibrated and checked on, and their labels."""

from __future__ import annotations

import inspect
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from mmcv.transforms import LoadAnnotations
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS, init_default_scope

from mmseg_repvgg.deploy.image_pipeline import (
    Preparation,
    class_of,
    first_data_set,
    read_pixels,
)
from mmseg_repvgg.deploy.images import SUFFIXES, resize_image, tested_size
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.verify_export import normalise

LOADERS = ('train', 'val', 'test')
"""What ``--calibration`` takes besides a folder: loaders of a config, without ``_dataloader``."""

IGNORED = 255
"""The label that mmseg gives to pixels of no class."""


class Images(Protocol):
    """Images (1, C, H, W) float32, one by one: :class:`Inputs`, or a list."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> np.ndarray:
        """One of them; raises IndexError behind the last."""


@dataclass(frozen=True)
class Picture:
    """An image file and what its data set says about it."""

    path: str
    # of mmseg's get_data_info
    info: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class Pictures:
    """Images drawn from a data set or a folder."""

    source: str  # for reports: a loader of the config, or the folder
    drawn: tuple[Picture, ...]
    annotations: Any = None  # the transform that reads labels; None: there are none

    @property
    def names(self) -> list[str]:
        """The files below the folder that all of them are in."""
        paths = [Path(picture.path).absolute() for picture in self.drawn]
        common = len(_common_parts([path.parent for path in paths]))
        return ['/'.join(path.parts[common:]) for path in paths]


def draw_pictures(
    cfg: Config, source: str, count: int, seed: int, without: Collection[str] = ()
) -> Pictures:
    """Draw images by seed, without repetition; all of them if there are fewer.

    Args:
        cfg: A config of mmseg.
        source: One of :data:`LOADERS`, or a folder, which is searched with its subfolders.
        count: How many.
        seed: The same seed draws the same images.
        without: Files that are not drawn.

    Raises:
        FileNotFoundError: If there are no images; names the place and the option.
    """
    annotations = None
    if source in LOADERS:
        loader = f'{source}_dataloader'
        found = _of_loader(cfg, loader)
        annotations = _annotations(first_data_set(cfg, loader))
    else:
        folder = Path(source)
        paths = sorted(path for path in folder.rglob('*') if path.suffix.lower() in SUFFIXES)
        found = [Picture(str(path)) for path in paths]
    found = [picture for picture in found if picture.path not in without]
    if not found:
        what = f'{source}_dataloader of the config' if source in LOADERS else f'folder {source!r}'
        raise FileNotFoundError(
            f'no images found in the {what}: give --calibration FOLDER with images like those the '
            'network will see, or set the data_root of the data set with --cfg-options'
        )
    drawn = random.Random(seed).sample(found, min(count, len(found)))
    return Pictures(source, tuple(drawn), annotations)


def _of_loader(cfg: Config, loader: str) -> list[Picture]:
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    settings = first_data_set(cfg, loader)
    if not settings:
        return []
    try:
        dataset = DATASETS.build(dict(settings, pipeline=[]))
    except FileNotFoundError:
        return []
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    return [Picture(info['img_path'], info) for info in infos if info.get('img_path')]


def _annotations(settings: Mapping[str, Any]) -> Any:
    """The transform of a data set's pipeline that reads labels, or None."""
    for transform in settings.get('pipeline') or ():
        kind = class_of(TRANSFORMS, transform)
        if inspect.isclass(kind) and issubclass(kind, LoadAnnotations):
            return TRANSFORMS.build(transform)
    return None


def _common_parts(folders: Sequence[Path]) -> list[str]:
    parts = []
    for names in zip(*(folder.parts for folder in folders), strict=False):
        if len(set(names)) > 1:
            break
        parts.append(names[0])
    return parts


@dataclass(frozen=True)
class Inputs:
    """Pictures as an exported network takes them, one by one; nothing is kept in memory.

    A network for whole images gets the image resized to its size. One for sliding windows gets a
    window at a random place, drawn by seed, of the image as it is tested.

    Args:
        pictures: The images.
        reference: The segmentor, whose data preprocessor normalises.
        preparation: How images are read.
        info: Of the exported network.
        seed: Of the windows' places.
    """

    pictures: Pictures
    reference: Any
    preparation: Preparation
    info: ModelDescription
    seed: int = 0

    def __len__(self) -> int:
        return len(self.pictures.drawn)

    def pixels(self, index: int) -> np.ndarray:
        """(1, C, H, W) float32 in BGR."""
        path = self.pictures.drawn[index].path
        image = read_pixels(path, self.preparation, self.info.channels)
        size = image.shape[:2]
        placed = self._place(image, index, size, resize_image)
        return np.ascontiguousarray(placed.transpose(2, 0, 1)[None]).astype(np.float32)

    def normalised(self, index: int) -> np.ndarray:
        """(1, C, H, W) float32, as the network in PyTorch takes them."""
        pixels = self.pixels(index)
        return normalise(self.reference, pixels, self.preparation.normalize).cpu().numpy()

    def __getitem__(self, index: int) -> np.ndarray:
        """(1, C, H, W) float32, as the exported file takes them."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.pixels(index) if self.info.preprocessing_inside else self.normalised(index)

    def labels(self, index: int) -> np.ndarray | None:
        """(H, W) integers of the same pixels, :data:`IGNORED` where there is no class.

        Returns:
            None if the data set has no labels, or their file is not there.
        """
        picture = self.pictures.drawn[index]
        path = picture.info.get('seg_map_path')
        if self.pictures.annotations is None or not path or not Path(path).is_file():
            return None
        # a copy: the transform adds to lists of it
        info = {
            key: list(value) if isinstance(value, list) else value
            for key, value in picture.info.items()
        }
        labels = self.pictures.annotations(info)['gt_seg_map']
        return self._place(labels, index, labels.shape, _resize_labels)

    def _place(self, plane: np.ndarray, index: int, size: Any, resize: Any) -> np.ndarray:
        """The part of an image or label map that the network sees."""
        info = self.info
        if info.stride is None:
            return resize(plane, info.size)
        plane = resize(plane, tested_size(size, info.resize, info.keep_ratio))
        if any(side < window for side, window in zip(plane.shape, info.size, strict=False)):
            return resize(plane, info.size)
        draw = random.Random(f'{self.seed} {index}')
        top, left = (
            draw.randint(0, side - window)
            for side, window in zip(plane.shape, info.size, strict=False)
        )
        return plane[top : top + info.size[0], left : left + info.size[1]]


def _resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
