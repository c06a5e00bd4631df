"""What a config and a runner's hooks are of, as far as this package asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner


def type_name(settings: Mapping[str, Any], default: str = '') -> str:
    """The name of the class that settings are for.

    Args:
        settings: With a ``type``: a name, a name with a scope or module before it, or, as in
            mmengine's pure Python configs, the class.
        default: What it is where there is no type.
    """
    kind = settings.get('type') or default
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return name.rpartition('.')[2]


def acts(hook: Hook, runner: Runner) -> bool:
    """Whether a hook is the first of its type in a runner: the same one twice acts once."""
    return next((other for other in runner.hooks if type(other) is type(hook)), hook) is hook
