"""The types of config settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
