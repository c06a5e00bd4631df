"""Segmenter: an exported model as a function from image to label map, for use in a service.

Needs numpy, OpenCV and the runtime of the model. Needs no OpenMMLab package, and PyTorch only for
the torch runtime.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import cv2
import numpy as np

from mmseg_repvgg.deploy.images import (
    as_picture,
    as_pixels,
    read_image,
    resize_as_tested,
    resize_image,
    resize_plane,
)
from mmseg_repvgg.deploy.model_description import SMALLEST_OF_ANY, ModelDescription
from mmseg_repvgg.deploy.tiling import (
    Pair,
    fit_windows,
    mean_logits,
    mean_strips,
    nearest_labels,
    window_starts,
)

ImageOrFile = np.ndarray | str | Path


class Network(Protocol):
    """An exported network in its runtime."""

    info: ModelDescription

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run it on (N, C, h, w) float32, as described by ``info``."""
        ...


class Prepared(NamedTuple):
    """An image as the network sees it."""

    planes: np.ndarray  # (C, h, w)
    inner: Pair  # height and width of the planes without padding
    shape: Pair  # of the image
    windows: tuple[Pair, Pair] | None = None  # size and stride; None: the network sees it whole


class Segmenter:
    """Label maps of images of any size, from a network of a fixed input size or for all sizes.

    A network for all sizes (``export --dynamic-size``) runs on images as the test pipeline resizes
    them, whole or in windows that shrink to smaller images, as in mmseg. Images of less than 64 x
    64 pixels are an error, or with ``pad_small_images`` are padded as below.

    A network of a fixed size without a stride in ``info`` runs on whole images, resized to its size
    without keeping the aspect ratio, and the logits are resized back as in mmseg. With a stride,
    the image is resized as in the test pipeline, and the network runs on sliding windows, placed
    and averaged as in mmseg's ``slide_inference``. Images smaller than a window are an error (mmseg
    would shrink the window), or with ``pad_small_images`` are padded below and to the right with
    the mean pixel.

    If the network ends in argmax, labels are resized by nearest neighbour and windows are not
    averaged: see :func:`.tiling.nearest_labels`.

    Memory does not grow with the number of windows: besides the image and its labels, ``batch``
    windows with their logits are kept, and the sums of the logits of one row of windows, or of the
    whole resized image if the labels are resized back.

    Threads may share a Segmenter, because calls do not change it. It can be pickled if its network
    can; networks from :func:`.load_runtime` can.

    Args:
        model: The exported file, with its .json next to it; or a loaded network.
        runtime: Name of the runtime; by default one that reads the file. Only for a file.
        threads: How many threads the runtime uses. Only for a file.
        batch: Windows, or images of a list, per call of the network, if it takes more than one.
        device: Device of the runtime, as in :func:`.load_runtime`. Only for a file.
        pad_small_images: Pad images smaller than a window instead of raising an error. Near the
            padding, labels differ from mmseg's.

    Raises:
        FileNotFoundError: If the file or its .json is not there.
        ValueError: If the file and its .json do not fit, or on a wrong argument.
    """

    def __init__(
        self,
        model: str | Path | Network,
        runtime: str | None = None,
        threads: int | None = None,
        batch: int = 4,
        pad_small_images: bool = False,
        device: str | None = None,
    ) -> None:
        if isinstance(model, (str, Path)):
            from mmseg_repvgg.deploy.runtimes import load_runtime

            options = {} if device is None else dict(device=device)
            self.network: Network = load_runtime(model, runtime, threads, **options)
        elif any(value is not None for value in (runtime, threads, device)):
            raise ValueError(
                f'runtime={runtime!r}, threads={threads!r} and device={device!r} act on a file '
                'only, not on a loaded network'
            )
        else:
            self.network = model
        if batch < 1:
            raise ValueError(f'batch={batch} must be at least 1')
        self.info = info = self.network.info
        self.batch = batch if info.dynamic_batch else 1
        self.pad_small_images = pad_small_images
        for size, stride in zip(info.size, info.stride or (), strict=False):
            window_starts(size, size, stride)  # raises if windows would leave pixels out
        count = len(info.classes)
        self._dtype = np.uint8 if count <= 256 else np.uint16
        self._colours = np.array(info.palette, np.uint8).reshape(-1, 3)[:, ::-1]  # BGR
        mean, std = (np.array(v, np.float32)[:, None, None] for v in (info.mean, info.std))
        # in BGR, the order of the image
        self._mean, self._std = (mean[::-1], std[::-1]) if info.to_rgb else (mean, std)

    @overload
    def __call__(self, image: ImageOrFile) -> np.ndarray: ...

    @overload
    def __call__(self, image: list[ImageOrFile] | tuple[ImageOrFile, ...]) -> list[np.ndarray]: ...

    def __call__(self, image: Any) -> np.ndarray | list[np.ndarray]:
        """Label every pixel of an image, or of each image of a list.

        Args:
            image: (H, W, 3) uint8 in BGR, as OpenCV reads it, or an image file; for others see
                :func:`.images.as_pixels` and :func:`.images.read_image`. Or a list or tuple of
                them, of any sizes; whole images that the network sees at one size share its calls.

        Returns:
            (H, W) indices into ``info.classes``; uint8 up to 256 classes, else uint16. For a list a
            list of them.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not an image, is smaller than a window (with a network for all
                sizes: than 64 x 64), or the output of the network does not fit ``info``. For an
                image of a list, the message begins with its number.
        """
        if isinstance(image, (list, tuple)):
            return self._label_list(image)
        prepared = self._prepare(image)
        if prepared.windows is not None:
            return self._sliding(prepared, prepared.windows)
        return self._labels_of_size(self._run(prepared.planes[None])[0], prepared)

    def warm_up(self, size: Pair | None = None) -> None:
        """Label a grey image, so that the first request does not wait for the runtime to set up.

        Args:
            size: Height and width of the image; None: those of the network's input.
        """
        channels, height, width = self.info.channels, *(size or self.info.size)
        self(np.full((height, width, channels), 128, np.uint8))

    def read(self, path: str | Path) -> np.ndarray:
        """Read an image file as in training: see :func:`.images.read_image`."""
        return read_image(path, self.info.color_type)

    def overlay(self, image: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
        """Paint a label map over its image in the colours of the classes.

        Args:
            image: As for a call.
            labels: (H, W) integers; at an unknown index the image stays visible.
            opacity: Of the colours, 0 to 1.

        Returns:
            (H, W, 3) uint8, BGR.

        Raises:
            ValueError: If image and labels differ in size, on a wrong argument, or if the model
                has no colours.
        """
        image = as_picture(image)
        if not len(self._colours):
            raise ValueError(
                'the .json of the model has no colours; give one to each class: '
                '"palette": [[red, green, blue], ...]'
            )
        if labels.shape != image.shape[:2] or labels.dtype.kind not in 'iu':
            raise ValueError(
                f'labels of the shape {labels.shape} and dtype {labels.dtype} do not fit an '
                f'image of {image.shape[:2]}: give one integer per pixel'
            )
        if not 0 <= opacity <= 1:
            raise ValueError(f'opacity={opacity} must be from 0 to 1')
        known = (labels >= 0) & (labels < len(self._colours))
        colours = self._colours[np.where(known, labels, 0)]
        blended = cv2.addWeighted(image, 1 - opacity, colours, opacity, 0)
        return np.where(known[:, :, None], blended, image)

    def _prepare(self, image: ImageOrFile) -> Prepared:
        """Read, resize and pad an image."""
        if isinstance(image, (str, os.PathLike)):
            image = self.read(image)
        info = self.info
        pixels = as_pixels(image, info.channels, info.color_type)
        shape = pixels.shape[0], pixels.shape[1]
        if info.stride is None and not info.dynamic_size:
            return Prepared(resize_image(pixels, info.size).transpose(2, 0, 1), info.size, shape)
        planes = resize_as_tested(pixels, info.resize, info.keep_ratio).transpose(2, 0, 1)
        _, height, width = planes.shape
        smallest = (SMALLEST_OF_ANY,) * 2 if info.dynamic_size else info.size
        if self.pad_small_images and (height < smallest[0] or width < smallest[1]):
            planes = self._pad(planes, smallest)
        windows = fit_windows(planes.shape[1:], info)
        return Prepared(planes, (height, width), shape, windows)

    def _label_list(self, images: Sequence[ImageOrFile]) -> list[np.ndarray]:
        """Label images in batches of those that the network sees at one size."""
        labels = [np.empty(0)] * len(images)
        waiting: dict[tuple[int, ...], list[tuple[int, Prepared]]] = {}

        def run(group: list[tuple[int, Prepared]]) -> None:
            outputs = self._run(np.stack([prepared.planes for _, prepared in group]))
            for (index, prepared), output in zip(group, outputs, strict=True):
                labels[index] = self._labels_of_size(output, prepared)

        for index, image in enumerate(images):
            try:
                prepared = self._prepare(image)
            except (ValueError, FileNotFoundError) as error:
                raise type(error)(f'image {index} of the list: {error}') from error
            if prepared.windows is not None:  # which share calls themselves
                labels[index] = self._sliding(prepared, prepared.windows)
                continue
            group = waiting.setdefault(prepared.planes.shape, [])
            group.append((index, prepared))
            if len(group) == self.batch:
                run(waiting.pop(prepared.planes.shape))
        for group in waiting.values():
            run(group)
        return labels

    def _sliding(self, prepared: Prepared, windows: tuple[Pair, Pair]) -> np.ndarray:
        """Labels of an image from windows of a size and a stride."""
        (height, width), tiling = prepared.inner, (self._run, prepared.planes, *windows, self.batch)
        if self.info.argmax_inside:
            return self._labels_of_size(nearest_labels(*tiling), prepared)
        if prepared.shape == prepared.inner:  # the logits are needed strip by strip
            labels = np.concatenate([self._argmax(strip) for strip in mean_strips(*tiling)])
            return np.ascontiguousarray(labels[:height, :width])
        return self._labels_of_size(mean_logits(*tiling), prepared)

    def _pad(self, planes: np.ndarray, smallest: Pair) -> np.ndarray:
        """Pad (C, H, W) pixels below and to the right with the mean pixel, to a smallest size."""
        _, height, width = planes.shape
        padded = np.empty((len(planes), *np.maximum((height, width), smallest)), np.float32)
        padded[:] = self._mean
        padded[:, :height, :width] = planes
        return padded

    def _labels_of_size(self, output: np.ndarray, prepared: Prepared) -> np.ndarray:
        """Labels of the image's size, of logits (C, h, w) or labels (h, w)."""
        (height, width), shape = prepared.inner, prepared.shape
        output = output[..., :height, :width]
        if self.info.argmax_inside:
            labels = np.ascontiguousarray(output.astype(self._dtype))
            if labels.shape == shape:
                return labels
            return cv2.resize(labels, shape[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
        if output.shape[1:] == shape:
            return self._argmax(output)
        # plane by plane: OpenCV 5 takes no more than 128 channels at once
        align = self.info.align_corners
        return self._argmax(resize_plane(np.ascontiguousarray(p), shape, align) for p in output)

    def _run(self, images: np.ndarray) -> np.ndarray:
        """(N, C, h, w) pixels in BGR -> logits or labels; normalises unless the network does it."""
        pixels = images.astype(np.float32)
        if not self.info.preprocessing_inside:
            pixels = (pixels - self._mean) / self._std
            if self.info.to_rgb:
                pixels = pixels[:, ::-1]
        output = self.network(np.ascontiguousarray(pixels))
        count, _, height, width = images.shape
        planes = () if self.info.argmax_inside else (self.info.num_outputs,)
        if output.shape != (count, *planes, height, width):
            raise ValueError(
                f'the network returns {output.shape} for {images.shape}, but its .json says '
                f'{(count, *planes, height, width)}: they do not belong together; export again'
            )
        return output

    def _argmax(self, planes: Iterable[np.ndarray]) -> np.ndarray:
        """Index of the largest plane at each pixel, the first if tied; reads one plane at a time.

        With a threshold there is one plane: 1 where its sigmoid is above the threshold.
        """
        labels, best = np.empty(0, self._dtype), np.empty(0)
        for index, plane in enumerate(planes):
            if self.info.threshold is not None:
                return (plane > logit(self.info.threshold)).astype(self._dtype)
            if not index:
                labels, best = np.zeros(plane.shape, self._dtype), plane.copy()
                continue
            np.putmask(labels, plane > best, index)
            np.maximum(best, plane, out=best)
        return labels


def logit(share: float) -> float:
    """The inverse of the sigmoid: -inf for ``share <= 0``, inf for ``share >= 1``."""
    if not 0 < share < 1:
        return -math.inf if share <= 0 else math.inf
    return math.log(share / (1 - share))
