"""Quantize an exported float32 file, and check what that costs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmseg_repvgg.deploy.half_precision import replacing
from mmseg_repvgg.deploy.image_pipeline import Preparation
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.quantize.onnx_qdq import quantize_onnx
from mmseg_repvgg.deploy.quantize.openvino_nncf import quantize_openvino
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.deploy.quantize.pictures import Inputs, Pictures, draw_pictures
from mmseg_repvgg.deploy.quantize.quality import Expected, Quality
from mmseg_repvgg.deploy.quantize.rounding import classifier_weights
from mmseg_repvgg.deploy.quantize.sensitivity import (
    Sensitivity,
    rank_layers,
    simulate,
    table,
)
from mmseg_repvgg.deploy.quantize.torch_pt2e import quantize_torch
from mmseg_repvgg.reparam.equalize import equalize
from mmseg_repvgg.reparam.equivalence import EquivalenceError

QUANTIZERS: dict[str, tuple[Callable[..., None], str]] = {
    'onnx': (quantize_onnx, 'onnxruntime'),
    'openvino': (quantize_openvino, 'nncf'),
    'torch': (quantize_torch, 'torchao'),
}
"""By format: a function that quantizes a file, and the package that does it."""

FEW, WORST = 8, 5
"""How many images equalizing and ranking layers take, and how many layers an error names."""


def draw_images(cfg: Config, options: Int8Options) -> tuple[Pictures, Pictures]:
    """Draw the images of the calibration and of the check, before anything is loaded.

    The check takes images of the test set that are not among the others. If there is no test set,
    it takes the images of the calibration.

    Raises:
        FileNotFoundError: If there are no images for the calibration.
    """
    calibration = draw_pictures(cfg, options.calibration, options.images, options.seed)
    used = {picture.path for picture in calibration.drawn}
    try:
        check = draw_pictures(cfg, 'test', options.check_images, options.seed, used)
    except FileNotFoundError:
        drawn = calibration.drawn[: options.check_images]
        check = replace(calibration, drawn=drawn)
    return calibration, check


class Int8Export:
    """Replaces an exported float32 file by one in int8 that loses little.

    Args:
        reference: The segmentor before any rewrite.
        rewritten: The one that the file was exported from.
        preparation: How images are read.
        info: The description of the float32 file.
        options: See :class:`Int8Options`.
        images: Of :func:`draw_images`.
    """

    def __init__(
        self,
        reference: nn.Module,
        rewritten: nn.Module,
        preparation: Preparation,
        info: ModelDescription,
        options: Int8Options,
        images: tuple[Pictures, Pictures],
    ) -> None:
        self.rewritten, self.options = rewritten, options
        self.calibration, check = (
            Inputs(pictures, reference, preparation, info, options.seed) for pictures in images
        )
        self.expected = Expected(check)
        self.results: list[Quality] = []
        self.equalized = 'none'  # or 'weights', 'maps': what was balanced with weights
        self.simulated: dict[str, float] = {}  # change of the logits, by the same names
        self.layers: list[Sensitivity] = []  # the most sensitive first; empty if not ranked

    @property
    def notes(self) -> list[str]:
        """What the user should know."""
        found = []
        if self.calibration.info.format == 'onnx' and not self.options.symmetric:
            found.append('TensorRT does not read this file; --symmetric writes one that it reads')
        if self.calibration.info.format == 'onnx' and 'dilation' in self.calibration.info.rewrites:
            found.append(
                'the rewrite dilation slows int8 down in ONNX Runtime: export the training '
                'checkpoint, or one fused with --rewrites branches batchnorm'
            )
        if self.simulated:
            errors = ', '.join(f'{name} {100 * e:.2f} %' for name, e in self.simulated.items())
            found.append(f'equalized: {self.equalized}; simulated change of the logits: {errors}')
        used = set(self.calibration.pictures.drawn)
        if used & set(self.expected.inputs.pictures.drawn):
            found.append(
                'there are no other images for the check than those of the calibration: new images '
                'may lose more'
            )
        return found

    def equalize(self, counts: dict[str, int]) -> tuple[str, ...]:
        """Equalize the rewritten network where that helps, unless it is switched off.

        int8 is simulated in PyTorch for the network as it is, with weights balanced with weights,
        and with feature maps balanced with weights. The one whose logits change least is taken.

        Args:
            counts: Gets the number of scaled channels.

        Returns:
            The names of the rewrites that changed something.
        """
        if not self.options.equalize:
            return ()
        images = self._images(FEW)
        scaled = {'none': 0}
        models = {'none': self.rewritten}
        for name, ranges in (('weights', None), ('maps', images)):
            models[name] = copy.deepcopy(self.rewritten)
            scaled[name] = equalize(models[name], ranges)
        left_out = classifier_weights(self.rewritten)
        self.simulated = {
            name: simulate(model, images, self.options.scheme, left_out)
            for name, model in models.items()
            if scaled[name] or name == 'none'
        }
        self.equalized = min(self.simulated, key=self.simulated.__getitem__)
        self.rewritten = models[self.equalized]
        if self.equalized == 'none':
            return ()
        counts['equalize'] = scaled[self.equalized]
        return ('equalize',)

    def __call__(self, written: Path, info: ModelDescription) -> ModelDescription:
        """Quantize the file, and return the description of the new one.

        Raises:
            EquivalenceError: If it loses more than the options allow; names the worst layers.
        """
        package = QUANTIZERS[info.format][1]
        if self.options.keep_float or self.options.sensitivity:
            self.layers = self._rank()
        with replacing(written) as converted:
            for count in self._float_counts():
                in_float = [layer.name for layer in self.layers[:count]]
                self._quantize(written, converted, info, in_float)
                if self.options.symmetric:
                    from mmseg_repvgg.deploy.tensorrt import check_tensorrt  # needs onnx

                    check_tensorrt(converted)
                if self._fits():
                    break
            else:
                raise EquivalenceError(self._loss())
            if self.options.sensitivity:
                from mmseg_repvgg.plots.sensitivity import draw_sensitivity  # needs matplotlib

                draw_sensitivity(self.layers, in_float, Path(self.options.sensitivity))
            record = self._record(in_float, f'{package} {version(package)}')
            info = replace(info, precision='int8', quantization=record).write(converted)
        return info

    def _float_counts(self) -> list[int]:
        """How many of the most sensitive layers to leave in float: one number after the other."""
        wanted, most = self.options.keep_float, len(self.layers)
        if isinstance(wanted, int):
            return [wanted]
        counts = [0]
        while counts[-1] < most // 2:
            counts.append(min(max(2 * counts[-1], 1), most // 2))
        return counts

    def _quantize(
        self, written: Path, converted: Path, info: ModelDescription, in_float: Sequence[str]
    ) -> None:
        """Write the file with these layers and the classifier in float, and compare it."""
        parameters = dict(self.rewritten.named_parameters())
        names = [*(f'{layer}.weight' for layer in in_float), *classifier_weights(self.rewritten)]
        weights = [parameters[name].detach().cpu().numpy() for name in names]
        QUANTIZERS[info.format][0](written, converted, self.calibration, self.options, weights)
        replace(info, precision='int8').write(converted)
        self.results = self.expected.compare(converted)

    def _fits(self) -> bool:
        limits = self.options.agreement, self.options.miou_drop
        return all(result.fits(*limits) for result in self.results)

    def _images(self, most: int) -> list[Tensor]:
        """The first calibration images, normalised."""
        like = next(self.rewritten.parameters())
        count = min(most, len(self.calibration))
        return [torch.from_numpy(self.calibration.normalised(i)).to(like) for i in range(count)]

    def _rank(self) -> list[Sensitivity]:
        left_out = classifier_weights(self.rewritten)
        return rank_layers(self.rewritten, self._images(FEW), self.options.scheme, left_out)

    def _loss(self) -> str:
        """What is lost, which layers are worst, and what to try."""
        options = self.options
        bad = next(r for r in self.results if not r.fits(options.agreement, options.miou_drop))
        self.layers = self.layers or self._rank()
        return (
            f'int8 loses too much: {bad}. At least {100 * options.agreement:.4g} % must keep their '
            f'class (--agreement), and mIoU may drop by {options.miou_drop:.4g} points '
            f'(--miou-drop). Nothing was written.\nThe layers that lose most, each quantized '
            f'alone:\n{table(self.layers, WORST)}\nTry {", or ".join(self._advice())}.'
        )

    def _advice(self) -> Iterator[str]:
        options = self.options
        if options.keep_float != 'auto':
            yield '--keep-float auto, which leaves the worst layers in float'
        if options.calibrator == 'min-max':
            yield '--calibrator percentile'
        if options.per_tensor:
            yield 'one scale per channel (without --per-tensor)'
        if not options.equalize:
            yield 'equalized channels (without --no-equalize)'
        if options.weight_bits == 7:
            yield '--weight-bits 8'
        yield 'more --calibration-images like those the network will see, or --fp16'

    def _record(self, in_float: list[str], library: str) -> dict[str, Any]:
        """What made the file, for its description."""
        settings = asdict(self.options)
        for name in ('images', 'check_images', 'calibration', 'sensitivity'):
            settings.pop(name)
        pictures, checked = self.calibration.pictures, self.expected.inputs.pictures
        return dict(
            settings,
            library=library,
            in_float=[
                *in_float,
                *(n.removesuffix('.weight') for n in classifier_weights(self.rewritten)),
            ],
            equalized=self.equalized,
            simulated=self.simulated,
            sensitivity=[asdict(layer) for layer in self.layers],
            calibration=dict(source=pictures.source, images=pictures.names),
            check=dict(source=checked.source, images=checked.names),
            quality={result.runtime: result.record() for result in self.results},
        )
