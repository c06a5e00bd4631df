"""LoadCheckHook: no weights are loaded silently in part, or in a naming scheme not understood."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmseg_repvgg.checkpoint.loading import check_fit
from mmseg_repvgg.checkpoint.naming import scheme_of, translate
from mmseg_repvgg.checkpoint.reading import state_dict_of


@HOOKS.register_module()
class LoadCheckHook(Hook):
    """When a checkpoint is loaded, log how much of the model it fills, and refuse too little.

    It fires between reading the file and filling the model. Names of the official code and of timm
    are turned into ours on the way. mmengine itself loads whatever fits and warns about the rest,
    so that a fused checkpoint in a training config would be evaluated with random weights.

    Args:
        required: The share of the model's tensors that must be found. 1 (for a test) allows nothing
            left over either; less (for fine-tuning) leaves heads of other classes out.

    Raises:
        CheckpointError: When it is less.
    """

    def __init__(self, required: float = 1.0) -> None:
        if not 0 < required <= 1:
            raise ValueError(f'required={required} must be a share: above 0, at most 1')
        self.required = required

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Translate, check and log."""
        state = state_dict_of(checkpoint)
        if scheme_of(state) in ('official', 'timm'):
            checkpoint['state_dict'] = state = translate(state, 'ours')
        model: Any = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        source = str(runner._load_from or 'the checkpoint')
        runner.logger.info(check_fit(model, state, source, self.required))
