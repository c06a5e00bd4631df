"""RepVGG backbones for mmsegmentation. Importing the package registers them with mmengine."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from mmseg_repvgg import registration
from mmseg_repvgg.shipped_files import config_path
from mmseg_repvgg.version import __version__

if TYPE_CHECKING:
    from mmseg_repvgg import engine, models, reparam

__all__ = ['__version__', 'config_path', 'engine', 'models', 'reparam']

registration.install()


def __getattr__(name: str) -> ModuleType:
    """Import a subpackage on first use: a service that needs none may run without PyTorch."""
    if name in __all__:
        return importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
