"""LoadCheckHook: no weights are loaded silently in part, or in a naming scheme not understood."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint

from mmseg_repvgg.checkpoint.loading import adapted, check_fit, check_sound
from mmseg_repvgg.checkpoint.reading import state_dict_of
from mmseg_repvgg.engine.config_types import acts


@HOOKS.register_module()
class LoadCheckHook(Hook):
    """When a checkpoint is loaded, log how much of the model it fills, and refuse too little.

    It fires between reading the file and filling the model, before the hooks that read the weights
    too (``EMAHook``). Weights are found wherever training codes put them; names of the official
    code and of timm are turned into ours, and training weights are fused for a fused model.
    mmengine itself looks under ``state_dict`` only, loads whatever fits and warns about the rest,
    so that a fused checkpoint in a training config would be evaluated with random weights.

    Args:
        required: The share of the model's tensors that must be found. 1 (for a test) allows nothing
            left over either; less (for fine-tuning) leaves heads of other classes out.

    Raises:
        CheckpointError: When it is less, or weights are NaN or infinite or a variance is negative.
    """

    priority = 'VERY_HIGH'

    def __init__(self, required: float = 1.0) -> None:
        if not 0 < required <= 1:
            raise ValueError(f'required={required} must be a share: above 0, at most 1')
        self.required = required
        self._is_starting = False

    def before_run(self, runner: Runner) -> None:
        """Note that what is loaded next may be what the config asks for."""
        self._is_starting = True

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Unwrap, translate, fuse, check and log."""
        if not acts(self, runner):
            return
        model: Any = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        source = self._source(runner)
        found = state_dict_of(checkpoint)
        check_sound(found, source)
        state = adapted(model, found)
        given = checkpoint.get('state_dict')
        if not isinstance(given, dict) or given.keys() != state.keys():
            checkpoint['state_dict'] = state  # where mmengine will look
        runner.logger.info(check_fit(model, state, source, self.required))

    def _source(self, runner: Any) -> str:
        """The file that is loaded, as far as a runner says: not in a ``load_checkpoint`` later."""
        is_own = self._is_starting and not runner._has_loaded
        self._is_starting = False
        latest = find_latest_checkpoint(runner.work_dir) if is_own and runner._resume else None
        return str((is_own and (runner._load_from or latest)) or 'the checkpoint')
