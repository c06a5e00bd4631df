"""The options of an export in int8, and their checks."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from mmseg_repvgg.checks import is_integer
from mmseg_repvgg.deploy.quantize.rounding import Scheme

CALIBRATORS: dict[str, tuple[str, ...]] = {
    'onnx': ('min-max', 'percentile', 'entropy'),
    'openvino': ('min-max', 'percentile'),
    'torch': ('min-max',),
}
"""By format: how the range of a feature map is chosen, the default first."""


@dataclass(frozen=True)
class Int8Options:
    """How a network is quantized, and how much it may lose.

    Raises:
        ValueError: If a value is not allowed.
    """

    calibration: str = 'train'  # a loader of the config (train, val, test), or a folder of images
    images: int = 64  # how many of them
    seed: int = 0  # of drawing them
    calibrator: str = 'min-max'  # one of CALIBRATORS
    per_tensor: bool = False  # one scale for all weights of a conv, instead of one per channel
    weight_bits: int = 8  # 7 cannot saturate on CPUs without VNNI
    symmetric: bool = False  # zero points are 0, as TensorRT requires
    equalize: bool = True
    keep_float: int | str = 0  # the most sensitive layers; 'auto': as few as the limits need
    sensitivity: str | None = None  # picture of it to write
    check_images: int = 20
    agreement: float = 0.97  # smallest share of pixels with the class of float32
    miou_drop: float = 0.5  # largest loss of mIoU, in points of percent

    def __post_init__(self) -> None:
        names = CALIBRATORS['onnx']
        if self.calibrator not in names:
            raise ValueError(f'calibrator={self.calibrator!r} must be one of {", ".join(names)}')
        _ = self.scheme  # checks its values
        for name in ('images', 'check_images'):
            if not is_integer(getattr(self, name), 1):
                raise ValueError(f'{name}={getattr(self, name)!r} must be an integer, at least 1')
        if self.sensitivity is not None:
            from mmseg_repvgg.plots.style import check_suffix  # needs matplotlib

            check_suffix(Path(self.sensitivity))
        if not is_integer(self.seed, 0):
            raise ValueError(f'seed={self.seed!r} must be an integer, at least 0')
        if self.keep_float != 'auto' and not is_integer(self.keep_float, 0):
            raise ValueError(f"keep_float={self.keep_float!r} must be a number of layers or 'auto'")
        for name, largest in (('agreement', 1), ('miou_drop', 100)):
            value = getattr(self, name)
            is_number = isinstance(value, (int, float)) and isfinite(value)
            if not (is_number and 0 <= value <= largest):
                raise ValueError(f'{name}={value!r} must be from 0 to {largest}')

    @property
    def scheme(self) -> Scheme:
        """How weights and feature maps are rounded."""
        return Scheme(self.per_tensor, self.weight_bits, self.symmetric)

    def check_format(self, model_format: str) -> None:
        """Check that a format can hold int8, and knows the calibrator.

        Raises:
            ValueError: If not.
        """
        if model_format not in CALIBRATORS:
            raise ValueError(
                f'int8 is not written as {model_format}: give an OUT that ends in .onnx, .xml or '
                '.pt2'
            )
        known = CALIBRATORS[model_format]
        if self.calibrator not in known:
            raise ValueError(
                f'calibrator={self.calibrator!r} is not known for {model_format}: use '
                f'{" or ".join(known)}'
            )
        if self.symmetric and model_format != 'onnx':
            raise ValueError(
                'symmetric activations are what TensorRT reads from .onnx files; leave the option '
                f'out for {model_format}'
            )


def check_found(wanted: Collection[bytes], found: Collection[bytes]) -> None:
    """Check that the exported file holds every weight that stays in float.

    A layer is known by its weight. One that an optimizer of graphs changed would be quantized in
    silence.

    Raises:
        ValueError: If one is missing.
    """
    missing = len(set(wanted) - set(found))
    if missing:
        raise ValueError(
            f'{missing} of {len(set(wanted))} layers that stay in float are not in the exported '
            'file as they are in PyTorch, so that they would be quantized: leave --keep-float out, '
            'or use --fp16'
        )
