"""Int8TrainingHook: train a fused network on with the rounding of int8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmseg_repvgg.checks import check_sequence
from mmseg_repvgg.deploy.quantize.rounding import (
    Scheme,
    replace_by_rounded_weights,
    round_convs,
)
from mmseg_repvgg.engine.hook_helpers import unwrapped
from mmseg_repvgg.engine.mixed_precision import CpuAmpOptimWrapper
from mmseg_repvgg.models.block import RepVGGBlock


@HOOKS.register_module()
class Int8TrainingHook(Hook):
    """Quantization-aware training: convs compute with weights and inputs rounded to int8.

    So do validation and test with this hook: their scores are those of a simulation of int8. The
    model must be fused, and start from trained weights. Checkpoints hold the same names as without
    this hook, and the weights before rounding, which learn. ``mmseg-repvgg export``, given the
    config with this hook, rounds them. Give the hook the options of that export.

    Args:
        per_tensor: One scale for all weights of a conv, instead of one for each output channel.
        weight_bits: 8, or 7.
        symmetric: Zero points of feature maps are 0.
        in_float: Names of convs that do not round. The classifier (``conv_seg``) and auxiliary
            heads never do.

    Raises:
        ValueError: If the model is not fused, no checkpoint was loaded for a training, mixed
            precision is on, or on a wrong argument.
    """

    def __init__(
        self,
        per_tensor: bool = False,
        weight_bits: int = 8,
        symmetric: bool = False,
        in_float: Sequence[str] = (),
    ) -> None:
        self.scheme = Scheme(per_tensor, weight_bits, symmetric)
        self.in_float = check_sequence('in_float', in_float)
        self._has_loaded = False

    def before_run(self, runner: Runner) -> None:
        """Let convs round, before others copy the model (``EMAHook``)."""
        model = unwrapped(runner.model)
        names = round_convs(model, self.scheme, self.in_float)
        for module in model.modules():
            if isinstance(module, RepVGGBlock):
                module.trains_fused = True
        options = ', '.join(f'{name}={value}' for name, value in asdict(self.scheme).items())
        runner.logger.info(f'{len(names)} convs round weights and inputs to int8: {options}')

    def round_weights_of(self, model: nn.Module) -> None:
        """Round the weights of a model that was trained with this hook, for export; in place."""
        replace_by_rounded_weights(model, self.scheme, self.in_float)

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note that there are trained weights."""
        self._has_loaded = True

    def before_train(self, runner: Runner) -> None:
        """Refuse what would train something else in silence."""
        if not self._has_loaded:
            raise ValueError(
                'Int8TrainingHook trains a fused network on, which cannot be trained from the '
                'start without its BatchNorms: name the trained or fused checkpoint in load_from'
            )
        if isinstance(runner.optim_wrapper, (AmpOptimWrapper, CpuAmpOptimWrapper)):
            raise ValueError(
                'Int8TrainingHook needs float32, because mixed precision would round a second '
                'time: leave --amp out'
            )
