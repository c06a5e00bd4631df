"""RepVGGDeployHook: evaluate the deployed form while the training form stays untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmseg_repvgg.checks import check_tolerance
from mmseg_repvgg.models.block import FUSED_TRAINING_ERROR
from mmseg_repvgg.reparam.branches import fusible_blocks
from mmseg_repvgg.reparam.equivalence import (
    compare,
    random_images,
    require_equal,
    tolerance_of,
)
from mmseg_repvgg.reparam.rewrites import check_names, default_names, deployed_copy, describe

CHECK_SIZE = 513
"""Height and width in pixels up to which an image is cropped for the check."""


@HOOKS.register_module()
class RepVGGDeployHook(Hook):
    """Validate and test a rewritten copy of the current weights.

    With the first batch of a validation or test ``runner.model`` is replaced by a copy in deployed
    form; after the last the very same training model is put back, so that training and checkpoints
    are bit for bit those without the hook. On that first batch both forms are compared: the numbers
    of fused places and the largest difference are logged, and past the tolerance the run stops.

    The copy is made after every ``before_val_epoch``, where ``EMAHook`` puts its averaged weights
    into the model. The hook's priority is above that of ``EMAHook`` and ``CheckpointHook``: at the
    end of a validation, and in a checkpoint saved in its midst, they find the training model.

    Args:
        rewrites: Names of the rewrites (:data:`mmseg_repvgg.reparam.REWRITES`); by default those
            that are not slower on the model's device.
        tolerance: Largest relative difference of the outputs; by default that of the weights'
            dtype, 1e-4 for float32.

    Raises:
        ValueError: On unknown rewrites, or when there is nothing to fuse, or shards of the weights
            only.
        EquivalenceError: When the deployed form is not equal.
        RuntimeError: When a fused model is to be trained.
    """

    priority = 'ABOVE_NORMAL'

    def __init__(
        self,
        rewrites: Sequence[str] | None = None,
        tolerance: float | None = None,
    ) -> None:
        self.rewrites = None if rewrites is None else check_names(rewrites)
        check_tolerance(tolerance)
        self.tolerance = tolerance
        # by runner, for one hook may be given to several
        self._training_models: WeakKeyDictionary[Runner, nn.Module] = WeakKeyDictionary()

    def before_train(self, runner: Runner) -> None:
        """Refuse to train a fused model, or one that the first validation could not fuse."""
        _refuse_shards(runner.model)
        if any(getattr(module, 'deploy', False) is True for module in runner.model.modules()):
            raise RuntimeError(FUSED_TRAINING_ERROR)
        if self.rewrites is None or 'branches' in self.rewrites:
            fusible_blocks(runner.model)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Put the deployed copy in place with the first batch, and compare both forms."""
        if runner not in self._training_models:
            self._deploy(runner, data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Put the deployed copy in place with the first batch, and compare both forms."""
        if runner not in self._training_models:
            self._deploy(runner, data_batch)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the training model back."""
        self._restore(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Put the training model back."""
        self._restore(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Put the training model back if an evaluation was left by an exception."""
        self._restore(runner)

    def before_val_epoch(self, runner: Runner) -> None:
        """As before a training epoch."""
        self._restore(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        """As before a training epoch."""
        self._restore(runner)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep what is saved during an evaluation in training form."""
        model = self._training_models.get(runner)
        if model is not None:
            state = _unwrap(model).state_dict()
            checkpoint['state_dict'] = {name: tensor.cpu() for name, tensor in state.items()}

    def _deploy(self, runner: Runner, data_batch: Any) -> None:
        _refuse_shards(runner.model)
        model = _unwrap(runner.model)
        names = default_names(model, compared=True) if self.rewrites is None else self.rewrites
        deployed, counts = deployed_copy(model, names)
        self._training_models[runner], runner.model = runner.model, deployed
        before, after = (
            _without_tta(_unwrap(m)) for m in (self._training_models[runner], deployed)
        )
        found = compare(before, after, _first_image(before, data_batch))
        tolerance = tolerance_of(before) if self.tolerance is None else self.tolerance
        require_equal(found, tolerance, 'RepVGGDeployHook')
        runner.logger.info(f'Evaluating the deployed form: {describe(counts)}; {found}')

    def _restore(self, runner: Runner) -> None:
        model = self._training_models.pop(runner, None)
        if model is not None:
            runner.model = model


def _refuse_shards(model: Any) -> None:
    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise ValueError(
            'RepVGGDeployHook cannot fuse under FSDP, where each process holds shards of the '
            'weights. Take it out of custom_hooks, and fuse the trained checkpoint with '
            'tools/deploy_fuse.py'
        )


def _unwrap(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model


def _without_tta(model: Any) -> nn.Module:
    return model.module if isinstance(model, BaseTTAModel) else model


def _first_image(model: Any, data_batch: Any) -> Tensor:
    """The batch's first image, preprocessed, cropped to CHECK_SIZE: (1, C, H, W).

    A batch of another kind (several views of an image, for example) gives random images.
    """
    inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
    preprocess = getattr(model, 'data_preprocessor', None)
    if preprocess is None or inputs is None or not isinstance(inputs[0], Tensor):
        return random_images(model)
    image = inputs[0][..., :CHECK_SIZE, :CHECK_SIZE]
    with torch.no_grad():
        images = preprocess(dict(inputs=[image]), False)['inputs']
    return images.to(next(model.parameters()).dtype)
