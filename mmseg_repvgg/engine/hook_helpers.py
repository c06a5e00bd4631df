"""What several hooks share."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner


def acts(hook: Hook, runner: Runner) -> bool:
    """Whether a hook is the first of its type in a runner; further ones do nothing."""
    return next((other for other in runner.hooks if type(other) is type(hook)), hook) is hook


def unwrapped(model: Any) -> Any:
    """Return the model inside wrappers for several processes and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model
