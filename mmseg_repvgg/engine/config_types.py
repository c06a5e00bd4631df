"""The types of config settings and of a runner's hooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner


def type_name(settings: Mapping[str, Any], default: str = '') -> str:
    """Return the name of the class that settings are for.

    Args:
        settings: Their ``type`` is a name, with or without a scope or module, or the class (in
            mmengine's pure Python configs).
        default: The name if there is no type.
    """
    kind = settings.get('type') or default
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', str(kind))
    return name.rpartition('.')[2]


def acts(hook: Hook, runner: Runner) -> bool:
    """Whether a hook is the first of its type in a runner; further ones do nothing."""
    return next((other for other in runner.hooks if type(other) is type(hook)), hook) is hook
