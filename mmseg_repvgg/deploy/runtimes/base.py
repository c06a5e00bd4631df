"""What all runtimes have in common: checks of the input, batches of any size, pickling."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mmseg_repvgg.deploy.model_description import ModelDescription


class Runtime(ABC):
    """A loaded exported model.

    Threads may share it. Pickling keeps the path and the options, and unpickling loads the file
    again. After a fork the child process must load the model itself, because the threads of the
    runtime exist only in the parent.

    Args:
        path: The model file, which the runtime can read.
        info: Its description.
        threads: How many threads a call uses; None: the runtime chooses.
        **options: See :meth:`load` of the subclass.
    """

    def __init__(
        self, path: Path, info: ModelDescription, threads: int | None = None, **options: Any
    ) -> None:
        self.path, self.info, self.threads = path, info, threads
        self._options, self._process = options, os.getpid()
        self.load(**options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle how to load the model again."""
        arguments = self.path, self.info, self.threads
        return partial(type(self), *arguments, **self._options), ()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run the network on images (N, channels, *info.size) float32, for any N.

        With ``info.dynamic_size`` they have any height and width. :class:`ModelDescription`
        describes input and output. A model with a fixed batch runs once per image.

        Raises:
            ValueError: If ``images`` has another shape or dtype.
            RuntimeError: If this process was forked after the model was loaded.
        """
        if os.getpid() != self._process:
            raise RuntimeError(
                f'{self.path} was loaded before this process was forked, and the threads that run '
                'it exist only in the parent: load it in each worker process, or start the workers '
                "with multiprocessing.get_context('spawn')"
            )
        shape = images.shape
        fits = len(shape) == 4 and shape[0] > 0 and shape[1] == self.info.channels
        if not fits or not self.info.takes_size(*shape[2:]):
            raise ValueError(
                f'images of shape {shape} do not fit {self.path}, which takes '
                f'{self.info.input_text}, N at least 1: resize or crop them, or export a model of '
                'their size'
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
    def load(self, *_: Any, **options: Any) -> None:
        """Load ``self.path``, to use ``self.threads`` threads."""

    @abstractmethod
    def run(self, images: np.ndarray) -> np.ndarray:
        """Run the network once on checked, contiguous images; N is 1 if the batch is fixed.

        Several threads may call it at once.
        """


def num_cores() -> int:
    """The CPUs that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
