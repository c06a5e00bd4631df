"""How much a quantized network loses: pixels that change their class, and mIoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from tqdm import tqdm

from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.quantize.pictures import Inputs
from mmseg_repvgg.deploy.runtimes import load_runtime, readers
from mmseg_repvgg.deploy.verify_export import labels_of, run_reference
from mmseg_repvgg.reparam.equivalence import EquivalenceError


@dataclass(frozen=True)
class Quality:
    """What a quantized file gives in a runtime, compared with PyTorch in float32."""

    runtime: str
    source: str  # of the images
    agreements: tuple[float, ...]  # per image: share of the pixels with the class of float32
    worst: str  # name of the image with the smallest
    miou: tuple[float, float] | None = None  # of float32 and of the file, in percent

    @property
    def agreement(self) -> float:
        """The mean over all images."""
        return fmean(self.agreements)

    @property
    def miou_drop(self) -> float:
        """Points of mIoU that are lost; 0 without labels."""
        return 0.0 if self.miou is None else self.miou[0] - self.miou[1]

    def __str__(self) -> str:
        miou = 'no labels for mIoU'
        if self.miou is not None:
            miou = f'mIoU {self.miou[1]:.2f} % (float32: {self.miou[0]:.2f} %)'
        return (
            f'{self.runtime} on {len(self.agreements)} images of {self.source}: '
            f'{100 * self.agreement:.2f} % of the pixels keep their class '
            f'({100 * min(self.agreements):.2f} % on the worst, {self.worst}), {miou}'
        )

    def fits(self, agreement: float, miou_drop: float) -> bool:
        """Whether the loss is within limits."""
        return self.agreement >= agreement and self.miou_drop <= miou_drop

    def record(self) -> dict[str, Any]:
        """For the description of the model."""
        miou = {} if self.miou is None else dict(miou_float32=self.miou[0], miou=self.miou[1])
        return dict(images=len(self.agreements), agreement=self.agreement, **miou)


class Expected:
    """The classes that float32 gives to the pixels of some images, and the true ones.

    Args:
        inputs: The images.
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    @cached_property
    def predicted(self) -> list[np.ndarray]:
        """Per image (H, W), of the network in PyTorch before any rewrite."""
        inputs, info = self.inputs, self.inputs.info
        normalize = inputs.preparation.normalize
        images = progress(range(len(inputs)), 'float32 on the images of the check')
        return [
            labels_of(run_reference(inputs.reference, inputs.pixels(i), normalize)[0], info)[0]
            for i in images
        ]

    @cached_property
    def truth(self) -> list[np.ndarray] | None:
        """Per image (H, W); None unless all images have labels."""
        found = [self.inputs.labels(i) for i in range(len(self.inputs))]
        return None if any(labels is None for labels in found) else found  # type: ignore

    def compare(self, path: Path, runtimes: Sequence[str] | None = None) -> list[Quality]:
        """Run a file on the images in every installed runtime that reads it.

        Raises:
            EquivalenceError: If there is no such runtime.
        """
        info = ModelDescription.read(path)
        names = readers(info.format) if runtimes is None else runtimes
        if not names:
            raise EquivalenceError(
                f'{path} cannot be checked: no runtime that reads it is installed; '
                "pip install 'mmseg-repvgg[deploy]'"
            )
        return [self._compare(path, name, info) for name in names]

    def _compare(self, path: Path, runtime: str, info: ModelDescription) -> Quality:
        network, found = load_runtime(path, runtime), []
        for index in progress(range(len(self.inputs)), f'{info.precision} in {runtime}'):
            output = network(self.inputs[index])
            found.append((output if info.argmax_inside else labels_of(output, info))[0])
        agreements = tuple(
            float((a == b).mean()) for a, b in zip(found, self.predicted, strict=True)
        )
        names = self.inputs.pictures.names
        worst = names[agreements.index(min(agreements))]
        miou = None
        if self.truth is not None:
            classes = len(info.classes)
            miou = (
                mean_iou(self.predicted, self.truth, classes),
                mean_iou(found, self.truth, classes),
            )
        return Quality(runtime, self.inputs.pictures.source, agreements, worst, miou)


def mean_iou(predicted: Sequence[np.ndarray], truth: Sequence[np.ndarray], classes: int) -> float:
    """Mean IoU in percent over the classes that the labels hold.

    Args:
        predicted: Per image (H, W).
        truth: Per image (H, W); pixels with other values than 0 to ``classes`` - 1 do not count.
        classes: The number of classes.
    """
    pairs = np.zeros((classes, classes), np.int64)  # truth, predicted
    for labels, true in zip(predicted, truth, strict=True):
        known = (true >= 0) & (true < classes)
        both = true[known].astype(np.int64) * classes + labels[known]
        pairs += np.bincount(both, minlength=classes**2).reshape(classes, classes)
    hits, true_pixels = pairs.diagonal(), pairs.sum(1)
    there = true_pixels > 0
    if not there.any():
        return float('nan')
    union = true_pixels + pairs.sum(0) - hits
    return 100 * float((hits[there] / union[there]).mean())


def progress(items: Any, what: str) -> Any:
    """Show progress on the terminal while iterating."""
    return tqdm(items, desc=what, leave=False, disable=None)
