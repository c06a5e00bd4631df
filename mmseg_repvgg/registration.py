"""Registers what the package adds to mmengine, at once or as soon as mmengine is imported.

Training imports mmengine, and ``import mmseg_repvgg`` must then register the backbone, the hooks
and the reader of :mod:`mmseg_repvgg.checkpoint.mmengine_loader`. A service imports
:mod:`mmseg_repvgg.deploy.segmenter`, and must run where neither PyTorch nor an mm package is
installed. So the package imports nothing itself: if mmengine is imported already (by a config's
``custom_imports``, by ``import mmseg`` before this package), it registers at once, else when the
import of mmengine ends.

mmengine has no hook for the latter: the root registries, which all scopes search, have no import
locations, and there are no entry points.

Decode heads derive from mmseg's, so they are registered with mmseg when its models are imported,
which its registry does before it looks for a name.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from mmseg_repvgg import mmcv_stub

MMSEG_MODELS = 'mmseg.models'


def install() -> None:
    """Register now if mmengine is imported, else when it is; a second call changes nothing.

    Raises:
        ImportError: If mmengine is imported, and another package that is needed is not installed.
    """
    if not any(isinstance(finder, AfterImport) for finder in sys.meta_path):
        actions: dict[str, Callable[[], None]] = {'mmengine': _register_or_warn}
        if MMSEG_MODELS not in sys.modules:
            actions[MMSEG_MODELS] = register_heads
        if mmcv_stub.EXT_LOADER in sys.modules:
            mmcv_stub.replace_load_ext()
        else:
            actions[mmcv_stub.EXT_LOADER] = mmcv_stub.replace_load_ext
        sys.meta_path.insert(0, AfterImport(actions))
    if 'mmengine' in sys.modules:
        register()
    if MMSEG_MODELS in sys.modules:
        register_heads()


def register() -> None:
    """Let mmengine read checkpoints safely, and put models and hooks into its registries.

    Raises:
        ImportError: If mmengine, mmcv or PyTorch is not installed, or does not load.
    """
    try:
        from mmseg_repvgg.checkpoint import mmengine_loader

        mmengine_loader.install()
        for name in ('models', 'accel', 'engine'):
            importlib.import_module(f'mmseg_repvgg.{name}')
    except ImportError as error:
        text = f'{error}. python -m mmseg_repvgg.doctor shows the fix'
        raise type(error)(text, name=error.name, path=error.path) from error


def register_heads() -> None:
    """Put our decode heads into mmseg's registry of models, whose modules must be imported."""
    for name in ('hard_pixels', 'uafm_head'):
        importlib.import_module(f'mmseg_repvgg.models.{name}')


def with_our_import(custom_imports: Mapping[str, Any] | None) -> dict[str, Any]:
    """The ``custom_imports`` of a config, with this package in them."""
    settings = dict(custom_imports or {})
    given = settings.get('imports') or []
    imports = [given] if isinstance(given, str) else list(given)
    if 'mmseg_repvgg' not in imports:
        imports.append('mmseg_repvgg')
    return dict(settings, imports=imports)


def _register_or_warn() -> None:
    """Register; only warn on failure, as mmengine may be used without mmcv for something else."""
    try:
        register()
    except ImportError as error:
        text = f'mmseg_repvgg has registered nothing with mmengine: {error}'
        warnings.warn(text, RuntimeWarning, stacklevel=2)


class AfterImport(MetaPathFinder):
    """Calls a function at the end of the first import of a module.

    Args:
        actions: The functions, by the full name of the module.
    """

    def __init__(self, actions: dict[str, Callable[[], None]]) -> None:
        self.actions = actions

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of another finder, with ``exec_module`` of its loader wrapped."""
        if fullname not in self.actions:
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, 'find_spec'):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if hasattr(spec.loader, 'exec_module'):  # not so for a folder without __init__
                        self._wrap(spec)
                    return spec
        return None

    def _wrap(self, spec: ModuleSpec) -> None:
        """Replace only the loader's method, because tools ask for its class and attributes."""
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = execute
            execute(module)
            action = self.actions.pop(spec.name, None)
            if action is not None:
                action()

        loader.exec_module = exec_module
