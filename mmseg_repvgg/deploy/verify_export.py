"""Run an exported model in every runtime that reads it, and compare it with PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch

from mmseg_repvgg.deploy.dynamic_size import odd_sizes
from mmseg_repvgg.deploy.export_graph import logits_of
from mmseg_repvgg.deploy.images import resize_image
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime, readers
from mmseg_repvgg.reparam.equivalence import EquivalenceError


@dataclass(frozen=True)
class Limits:
    """How much a runtime may differ from PyTorch."""

    relative: float  # largest difference of logits / largest absolute logit
    agreement: float  # smallest share of pixels with the same class


LIMITS: dict[str, Limits] = {
    'onnxruntime': Limits(1e-4, 0.999),
    'openvino': Limits(1e-4, 0.999),
    'torch': Limits(1e-4, 0.999),
    # Winograd with large tiles has larger rounding errors
    'mnn': Limits(1e-2, 0.995),
}
"""By runtime. Labels may differ only at pixels whose two best classes are nearly tied."""


@dataclass(frozen=True)
class Match:
    """How an exported model compares with PyTorch."""

    runtime: str
    image: str  # what it was run on
    size: tuple[int, int]  # height, width
    relative: float | None  # as in Limits; None if the model gives labels
    agreement: float

    def __str__(self) -> str:
        logits = '' if self.relative is None else f'logits differ by {self.relative:.2g}, '
        height, width = self.size
        return (
            f'{self.runtime} on {self.image}, {height}x{width}: {logits}'
            f'argmax agreement {100 * self.agreement:.4f} %'
        )


def verify(
    path: Path,
    reference: Any,
    image: np.ndarray,
    name: str,
    tolerance: float | None = None,
    agreement: float | None = None,
    normalize: Mapping[str, Any] | None = None,
) -> list[Match]:
    """Run an exported model in every installed runtime that reads it.

    Args:
        path: The model, with its description next to it.
        reference: The segmentor before any rewrite, in eval mode.
        image: (H, W, C), in BGR; it is resized to the size of the model, or if that takes all
            sizes to its ``size`` and to five odd sizes.
        name: Name of the image, for reports and errors.
        tolerance: Replaces :attr:`Limits.relative` of every runtime.
        agreement: Replaces :attr:`Limits.agreement`.
        normalize: As :func:`run_reference`.

    Returns:
        One entry per runtime and size, all within the limits.

    Raises:
        EquivalenceError: If a runtime exceeds the limits, or none is installed.
    """
    info = ModelDescription.read(path)
    networks = {runtime: load_runtime(path, runtime) for runtime in readers(info.format)}
    matches = []
    for size in [info.size, *(odd_sizes(info.size) if info.dynamic_size else ())]:
        pixels = to_batch(image, size)
        if info.dynamic_batch:  # a batch of two, the second mirrored
            pixels = np.concatenate([pixels, pixels[..., ::-1]])
        expected, normalised = run_reference(reference, pixels, normalize)
        images = pixels if info.preprocessing_inside else normalised
        for runtime, network in networks.items():
            match = compare_output(runtime, name, expected, network(images), info)
            limits = LIMITS[runtime]
            _require(
                match,
                limits.relative if tolerance is None else tolerance,
                limits.agreement if agreement is None else agreement,
            )
            matches.append(match)
    if not matches:
        raise EquivalenceError(
            f'{path} cannot be checked: no runtime that reads it is installed; '
            "pip install 'mmseg-repvgg[deploy]' (python -m mmseg_repvgg.doctor lists them)"
        )
    return matches


def to_batch(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, C) -> (1, C, *size) float32."""
    return resize_image(image, size).transpose(2, 0, 1)[None].astype(np.float32)


def run_reference(
    reference: Any, pixels: np.ndarray, normalize: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Run PyTorch on pixels.

    Args:
        reference: The segmentor, in eval mode; its data preprocessor normalises.
        pixels: (N, C, H, W) float32 in BGR.
        normalize: Settings of the transform ``Normalize`` of the test pipeline, if there is one.

    Returns:
        The logits (N, classes, H, W) and the normalised images (N, C, H, W).

    Raises:
        EquivalenceError: If logits are NaN or infinite.
    """
    normalised = normalise(reference, pixels, normalize)
    with torch.no_grad():
        logits = logits_of(reference, normalised.to(next(reference.parameters())))
    if not bool(logits.isfinite().all()):
        raise EquivalenceError(
            'the network gives NaN or infinite logits: the checkpoint is damaged or its training '
            'diverged'
        )
    return logits.cpu().numpy(), normalised.cpu().numpy()


def normalise(
    reference: Any, pixels: np.ndarray, normalize: Mapping[str, Any] | None = None
) -> torch.Tensor:
    """Normalise pixels as :func:`run_reference` does, which has the same arguments."""
    preprocessor = copy.copy(reference.data_preprocessor)
    preprocessor.test_cfg = None  # it pads, but a graph has one size
    if normalize is not None:
        mean, std = (np.array(normalize[name], np.float64) for name in ('mean', 'std'))
        planes = [
            mmcv.imnormalize(image, mean, std, normalize['to_rgb'])
            for image in pixels.transpose(0, 2, 3, 1)
        ]
        pixels = np.stack(planes).transpose(0, 3, 1, 2)
    images = list(torch.from_numpy(np.ascontiguousarray(pixels)))
    return preprocessor(dict(inputs=images), False)['inputs']


def compare_output(
    runtime: str, image: str, expected: np.ndarray, output: np.ndarray, info: ModelDescription
) -> Match:
    """Compare the output of a runtime with PyTorch's logits (N, classes, H, W)."""
    labels, relative = output, None
    size = expected.shape[2], expected.shape[3]
    if not info.argmax_inside:
        labels = labels_of(output, info)
        scale = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
        gap = np.nan_to_num(np.abs(output - expected), nan=np.inf).max()
        relative = float(gap) / scale
    agreement = float((labels == labels_of(expected, info)).mean())
    return Match(runtime, image, size, relative, agreement)


def labels_of(logits: np.ndarray, info: ModelDescription) -> np.ndarray:
    """Class indices (N, H, W) of logits (N, classes, H, W)."""
    if info.threshold is None:
        return logits.argmax(1)
    with np.errstate(over='ignore'):
        return (1 / (1 + np.exp(-logits[:, 0])) > info.threshold).astype(np.int64)


def _require(match: Match, tolerance: float, agreement: float) -> None:
    logits_fit = match.relative is None or match.relative <= tolerance
    if not (logits_fit and match.agreement >= agreement):
        raise EquivalenceError(
            f'the exported model is not equal to PyTorch: {match}. Logits may differ by at most '
            f'{tolerance:.2g} of the largest, and the agreement must be {100 * agreement:.4g} % or '
            'more. Nothing was written; use fewer --rewrites, or set --tolerance and --agreement'
        )
