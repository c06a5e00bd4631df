"""Segmenter: an exported model as a function from image to label map; what a service ships.

Needs numpy, OpenCV and the runtime of the model; no PyTorch (but for the torch runtime) and no mm
package.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from mmseg_repvgg.deploy.images import as_bgr, read_image
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.tiling import mean_strips, nearest_labels, pad_to_window, window_starts


class Network(Protocol):
    """An exported network in its runtime."""

    info: ModelDescription

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run it on (N, 3, h, w) float32, as the info says."""
        ...


class Segmenter:
    """Label maps of images of any size, from a network of a fixed input size.

    Without a stride in its info the network sees the whole image, resized to its input size, and
    the logits are resized back: both bilinear as ``align_corners=False``, and without keeping the
    ratio of the sides. With a stride it sees windows, placed and averaged as in mmseg's
    ``slide_inference``; an image smaller than a window is padded below and to the right with the
    mean pixel, which is 0 after normalisation and what mmseg pads with. Where the network ends in
    argmax, labels are resized by nearest neighbour, and windows are not averaged: see
    :func:`.tiling.nearest_labels`.

    A call changes nothing in the Segmenter; threads may share it if the runtime allows that.

    Args:
        model: The exported file, with its .json beside it; or a network that is loaded already.
        runtime: Name of the runtime; by default one that reads the file. Only for a file.
        threads: As many as the runtime uses. Only for a file.
        batch: Windows run at once, where the network takes more than one.

    Raises:
        FileNotFoundError: If the file or its .json is not there.
        ValueError: If they do not fit, or on a wrong argument.
    """

    def __init__(
        self,
        model: str | Path | Network,
        runtime: str | None = None,
        threads: int | None = None,
        batch: int = 4,
    ) -> None:
        if isinstance(model, (str, Path)):
            from mmseg_repvgg.deploy.runtimes import load_runtime

            self.network: Network = load_runtime(model, runtime, threads)
        elif runtime is not None or threads is not None:
            raise ValueError(
                f'runtime={runtime!r} and threads={threads!r} act on a file that is loaded, not on '
                'a network that is loaded already'
            )
        else:
            self.network = model
        if batch < 1:
            raise ValueError(f'batch={batch} must be at least 1')
        self.info = info = self.network.info
        self.batch = batch if info.dynamic_batch else 1
        for size, stride in zip(info.size, info.stride or (), strict=False):
            window_starts(size, size, stride)  # refuses what would leave pixels out
        count = len(info.classes)
        self._dtype = np.uint8 if count <= 256 else np.uint16
        self._colours = np.array(info.palette, np.uint8).reshape(-1, 3)[:, ::-1]  # BGR
        mean, std = np.array(info.mean, np.float32), np.array(info.std, np.float32)
        # of the image as it comes, in BGR
        self._mean, self._std = (mean[::-1], std[::-1]) if info.to_rgb else (mean, std)

    def __call__(self, image: np.ndarray | str | Path) -> np.ndarray:
        """Label every pixel.

        Args:
            image: (H, W, 3) uint8 in BGR, as OpenCV reads it, or its file; for others see
                :func:`.images.as_bgr` and :func:`.images.read_image`.

        Returns:
            (H, W) indices into ``info.classes``; uint8 up to 256 classes, else uint16.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an image, or the network is not what its info says.
        """
        pixels = as_bgr(image) if isinstance(image, np.ndarray) else as_bgr(read_image(image))
        return self._whole(pixels) if self.info.stride is None else self._sliding(pixels)

    def overlay(self, image: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
        """Paint a label map over its image in the colours of the classes.

        Args:
            image: As for a call.
            labels: (H, W) integers; where there is no class of that index, the image is left.
            opacity: Of the colours, 0 to 1.

        Returns:
            (H, W, 3) uint8, BGR.

        Raises:
            ValueError: If image and labels differ in size, on a wrong argument, or if the model
                came without colours.
        """
        image = as_bgr(image)
        if not len(self._colours):
            raise ValueError(
                'the .json of the model has no colours; give one to each class: '
                '"palette": [[red, green, blue], ...]'
            )
        if labels.shape != image.shape[:2] or labels.dtype.kind not in 'iu':
            raise ValueError(
                f'labels of the shape {labels.shape} and dtype {labels.dtype} are not those of an '
                f'image of {image.shape[:2]}: integers, one a pixel'
            )
        if not 0 <= opacity <= 1:
            raise ValueError(f'opacity={opacity} must be from 0 to 1')
        known = (labels >= 0) & (labels < len(self._colours))
        colours = self._colours[np.where(known, labels, 0)]
        blended = cv2.addWeighted(image, 1 - opacity, colours, opacity, 0)
        return np.where(known[:, :, None], blended, image)

    def _whole(self, image: np.ndarray) -> np.ndarray:
        size, (height, width) = self.info.size, image.shape[:2]
        same = (height, width) == size
        if not same:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        output = self._run(self._prepare(image)[None])[0]
        if self.info.argmax_inside:
            labels = output.astype(self._dtype)
            if same:
                return labels
            return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
        if same:
            return self._argmax(output)
        # plane by plane: OpenCV 5 takes no more than 128 channels at once
        return self._argmax(cv2.resize(plane, (width, height)) for plane in output)

    def _sliding(self, image: np.ndarray) -> np.ndarray:
        assert self.info.stride is not None
        size, (height, width) = self.info.size, image.shape[:2]
        mean_pixel = self._mean[:, None, None] if self.info.preprocessing_inside else 0
        padded = pad_to_window(self._prepare(image), size, mean_pixel)
        tiling = self._run, padded, size, self.info.stride, self.batch
        if self.info.argmax_inside:
            labels = nearest_labels(*tiling).astype(self._dtype)
        else:
            labels = np.concatenate([self._argmax(strip) for strip in mean_strips(*tiling)])
        return np.ascontiguousarray(labels[:height, :width])

    def _prepare(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 BGR -> (3, H, W) float32, normalised unless the network does it."""
        pixels = image.astype(np.float32)
        if not self.info.preprocessing_inside:
            pixels = (pixels - self._mean) / self._std
            if self.info.to_rgb:
                pixels = pixels[:, :, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _run(self, images: np.ndarray) -> np.ndarray:
        output = self.network(images)
        count, _, height, width = images.shape
        classes = () if self.info.argmax_inside else (len(self.info.classes),)
        if output.shape != (count, *classes, height, width):
            raise ValueError(
                f'the network makes {output.shape} of {images.shape}, and by its .json it should '
                f'make {(count, *classes, height, width)}: they do not belong together; export '
                'again'
            )
        return output

    def _argmax(self, planes: Iterable[np.ndarray]) -> np.ndarray:
        """Index of the greatest plane at each pixel, the first of equal ones; one at a time."""
        labels, best = np.empty(0, self._dtype), np.empty(0)
        for index, plane in enumerate(planes):
            if not index:
                labels, best = np.zeros(plane.shape, self._dtype), plane.copy()
                continue
            np.putmask(labels, plane > best, index)
            np.maximum(best, plane, out=best)
        return labels
