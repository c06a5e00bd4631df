"""RepVGGDeployHook: evaluate the deployed form while the training form stays untouched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmseg_repvgg.checks import check_tolerance
from mmseg_repvgg.engine.hook_helpers import unwrapped
from mmseg_repvgg.reparam.branches import fusible_blocks
from mmseg_repvgg.reparam.equivalence import (
    compare,
    random_images,
    require_equal,
    step_outputs,
    takes_images,
    tolerance_of,
)
from mmseg_repvgg.reparam.rewrites import check_names, default_names, deployed_copy, describe

CHECK_SIZE = 513
"""The check crops an image to at most this height and width, in pixels."""


@HOOKS.register_module()
class RepVGGDeployHook(Hook):
    """Validate and test a rewritten copy of the current weights.

    ``runner.model`` is never replaced, so training, checkpoints and other hooks are bit for bit the
    same as without this hook. In an evaluation, ``val_step`` and ``test_step`` of the model run on
    a copy in deployed form. The copy is made on the first batch, from the current weights of the
    model (those of ``EMAHook``, for example). Both forms are compared on that batch: the counts of
    rewrites and the largest difference are logged, and a difference above the tolerance stops the
    run.

    Args:
        rewrites: Names of the rewrites (:data:`mmseg_repvgg.reparam.REWRITES`); by default those
            that are not slower on the model's device.
        tolerance: Largest relative difference of the outputs; by default that of the weights'
            dtype, 1e-4 for float32.

    Raises:
        ValueError: On unknown rewrites, if there is nothing to fuse, or if the weights are sharded.
        EquivalenceError: If the deployed form is not equal.
    """

    def __init__(
        self,
        rewrites: Sequence[str] | None = None,
        tolerance: float | None = None,
    ) -> None:
        self.rewrites = None if rewrites is None else check_names(rewrites)
        check_tolerance(tolerance)
        self.tolerance = tolerance
        # by runner, because several may share a hook
        self._deployed: WeakKeyDictionary[Runner, nn.Module] = WeakKeyDictionary()

    def before_run(self, runner: Runner) -> None:
        """Refuse sharded weights."""
        if any(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()):
            raise ValueError(
                'RepVGGDeployHook cannot fuse under FSDP, where each process holds shards of the '
                'weights. Take it out of custom_hooks, and fuse the trained checkpoint with '
                'mmseg-repvgg fuse'
            )

    def before_train(self, runner: Runner) -> None:
        """Refuse a model that the first validation could not fuse."""
        if self.rewrites is None or 'branches' in self.rewrites:
            fusible_blocks(runner.model)

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Free the copy of an evaluation that an exception ended."""
        self._deployed.pop(runner, None)

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Free the copy."""
        self._deployed.pop(runner, None)

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        """In an evaluation, make the next ``val_step`` or ``test_step`` run in deployed form."""
        if mode == 'train':
            return
        model, step = runner.model, f'{mode}_step'
        hidden = vars(model).get(step)
        if hasattr(hidden, 'is_of_deploy_hook'):
            return  # the hook is registered twice, or an exception came before the step

        def run_deployed(data_batch: Any) -> Any:
            if hidden is None:
                delattr(model, step)
            else:
                setattr(model, step, hidden)
            if runner not in self._deployed:
                self._deployed[runner] = self._make_deployed(runner, data_batch)
            return getattr(self._deployed[runner], step)(data_batch)

        run_deployed.is_of_deploy_hook = True  # type: ignore[attr-defined]
        setattr(model, step, run_deployed)

    def _make_deployed(self, runner: Runner, data_batch: Any) -> nn.Module:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        names = default_names(model, compared=True) if self.rewrites is None else self.rewrites
        deployed, counts = deployed_copy(model, names)
        before, after = unwrapped(model), unwrapped(deployed)
        if takes_images(before):
            found = compare(before, after, _first_image(before, data_batch))
        else:
            found = compare(before, after, data_batch, step_outputs)
        tolerance = tolerance_of(before) if self.tolerance is None else self.tolerance
        require_equal(found, tolerance, 'RepVGGDeployHook')
        runner.logger.info(f'Evaluating the deployed form: {describe(counts)}; {found}')
        return deployed


def _first_image(model: Any, data_batch: Any) -> Tensor:
    """The batch's first image, preprocessed, cropped to CHECK_SIZE: (1, C, H, W).

    For a batch of another kind (several views of an image, for example), random images.
    """
    inputs = data_batch.get('inputs') if isinstance(data_batch, dict) else None
    is_views = isinstance(inputs, Sequence) and not isinstance(inputs[0], Tensor)
    if inputs is None or is_views or not hasattr(model, 'data_preprocessor'):
        return random_images(model)
    with torch.no_grad():
        images = model.data_preprocessor(data_batch, False)['inputs']
    image = images[0][None, ..., :CHECK_SIZE, :CHECK_SIZE]
    return image.to(next(model.parameters()).dtype)
