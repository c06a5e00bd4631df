"""LoadCheckHook: weights that fit only in part, or have unknown names, never load silently."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint

from mmseg_repvgg.checkpoint.loading import adapted, check_fit, check_sound
from mmseg_repvgg.checkpoint.reading import state_dict_of
from mmseg_repvgg.engine.hook_helpers import acts, unwrapped


@HOOKS.register_module()
class LoadCheckHook(Hook):
    """Log how much of the model a loaded checkpoint fills, and refuse too little.

    It runs after the file is read and before the model is filled, and before other hooks that read
    the weights (``EMAHook``). Weights are found under the usual keys of training scripts; names of
    the official code and of timm become ours, and training weights are fused for a fused model.
    mmengine itself reads only ``state_dict``, loads whatever fits and warns about the rest, so a
    fused checkpoint in a training config would be evaluated with random weights.

    Args:
        required: The share of the model's tensors that must be found. 1 (for a test) also forbids
            unexpected tensors; less (for fine-tuning) allows heads for other classes.

    Raises:
        CheckpointError: If fewer fit, weights are NaN or infinite, or a variance is negative.
    """

    priority = 'VERY_HIGH'

    def __init__(self, required: float = 1.0) -> None:
        if not 0 < required <= 1:
            raise ValueError(f'required={required} must be a share: above 0, at most 1')
        self.required = required
        self._is_starting = False

    def before_run(self, runner: Runner) -> None:
        """Note that the next checkpoint may be the one that the config names."""
        self._is_starting = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Unwrap, translate, fuse, check and log."""
        if not acts(self, runner):
            return
        model = unwrapped(runner.model)
        source = self._source(runner)
        found = state_dict_of(checkpoint)
        check_sound(found, source)
        state = adapted(model, found)
        given = checkpoint.get('state_dict')
        if not isinstance(given, dict) or given.keys() != state.keys():
            checkpoint['state_dict'] = state  # where mmengine will look
        runner.logger.info(check_fit(model, state, source, self.required))

    def _source(self, runner: Any) -> str:
        """Return the loaded file if the runner says it; a later ``load_checkpoint`` does not."""
        is_own = self._is_starting and not runner._has_loaded
        self._is_starting = False
        latest = find_latest_checkpoint(runner.work_dir) if is_own and runner._resume else None
        return str((is_own and (runner._load_from or latest)) or 'the checkpoint')
