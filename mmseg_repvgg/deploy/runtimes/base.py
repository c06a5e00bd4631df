"""What all runtimes have in common: the check of the input, and batches of any size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from mmseg_repvgg.deploy.model_description import ModelDescription


class Runtime(ABC):
    """An exported model, loaded and ready.

    One call at a time: threads that share a model take turns, or load one each.

    Args:
        path: The model file, which the runtime can read.
        info: What was written beside it.
        threads: How many threads a call uses; None: as many as the runtime sees fit.
    """

    def __init__(self, path: Path, info: ModelDescription, threads: int | None) -> None:
        self.path, self.info, self.threads = path, info, threads

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run the network on images (N, 3, *info.size) float32, for any N.

        :class:`ModelDescription` says what the images hold and what comes out. A model of fixed
        batch runs once per image.

        Raises:
            ValueError: If ``images`` has another shape or dtype.
        """
        expected = (3, *self.info.size)
        if images.ndim != 4 or images.shape[1:] != expected or len(images) == 0:
            raise ValueError(
                f'images of shape {images.shape} do not fit {self.path}, which takes (N, '
                f'{", ".join(map(str, expected))}), N at least 1: resize or cut them, or export a '
                'model of their size'
            )
        if images.dtype != np.float32:
            raise ValueError(
                f'images are {images.dtype}, but {self.path} takes float32: use '
                "images.astype('float32')"
            )
        images = np.ascontiguousarray(images)
        if self.info.dynamic_batch:
            return self.run(images)
        return np.concatenate([self.run(images[i : i + 1]) for i in range(len(images))])

    @abstractmethod
    def run(self, images: np.ndarray) -> np.ndarray:
        """Run the network once on checked, contiguous images; N is 1 if the batch is fixed."""
