"""Registering what the package brings, at once or as soon as mmengine is imported.

Training imports mmengine, and ``import mmseg_repvgg`` must then register the backbone, the hooks
and what :mod:`mmseg_repvgg.checkpoint.mmengine_loader` changes. A service imports
:mod:`mmseg_repvgg.deploy.segmenter`, and must be able to run where neither PyTorch nor an mm
package is installed. Both begin with the import of this package, which cannot see what follows, so
it looks at what is there:

* mmengine is imported already (the config's ``custom_imports``, ``import mmseg`` before this
  package): register at once; an error ends the import.
* It is not: a finder at the front of ``sys.meta_path`` waits for it. If mmengine never comes,
  nothing happens.

The finder registers when the outermost import of mmengine, mmcv or a module of this package ends,
rather than right after mmengine: ``import mmcv`` imports mmengine in its middle, and so do our own
modules, and what is half imported cannot be built upon. Only the stand-in for ``mmcv._ext`` cannot
wait for that end, and needs nothing: it is there from the start.

Two designs would be simpler. mmengine's registries import their modules on the first lookup, but
the root ones, where we register, have no public way to be given any. An environment variable that
switches registration off would be forgotten.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from mmseg_repvgg import mmcv_stub

PACKAGE = 'mmseg_repvgg'


def install() -> None:
    """Register now if mmengine is imported, else when it is; a second call changes nothing.

    Raises:
        ImportError: If mmengine is imported, and a package needed beside it is not installed.
    """
    mmcv_stub.install()
    if 'mmengine' in sys.modules:
        register()
    elif not any(isinstance(finder, Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, Watch())


def register() -> None:
    """Let mmengine read checkpoints safely, and put models and hooks into its registries.

    Raises:
        ImportError: If mmengine, mmcv or PyTorch is not installed, or does not load.
    """
    try:
        from mmseg_repvgg.checkpoint import mmengine_loader

        mmengine_loader.install()
        for name in ('models', 'accel', 'engine'):
            importlib.import_module(f'{PACKAGE}.{name}')
    except ImportError as error:
        text = f'{error}. python -m mmseg_repvgg.doctor says what mends it'
        raise type(error)(text, name=error.name, path=error.path) from error


class Watch(MetaPathFinder):
    """Finds what the other finders find, and registers at the end of the import; see above."""

    def __init__(self) -> None:
        self.running: set[str] = set()  # names of the modules being executed, in all threads
        self.has_mmengine = False

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Take the spec that another finder has and make it report its execution."""
        if fullname not in ('mmengine', 'mmcv') and not fullname.startswith(f'{PACKAGE}.'):
            return None
        for finder in sys.meta_path:
            if finder is not self and hasattr(finder, 'find_spec'):
                spec = finder.find_spec(fullname, path, target)
                if spec is not None:
                    if hasattr(spec.loader, 'exec_module'):  # not so for a folder without __init__
                        self._watch(spec)
                    return spec
        return None

    def _watch(self, spec: ModuleSpec) -> None:
        """Wrap ``exec_module`` on the loader itself: another one would hide what tools ask for."""
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            loader.exec_module = execute
            self.running.add(spec.name)
            try:
                execute(module)
                self.has_mmengine |= spec.name == 'mmengine'
            finally:
                self.running.discard(spec.name)
                if self.has_mmengine and not self.running:
                    self._register()

        loader.exec_module = exec_module

    def _register(self) -> None:
        """Stop watching and register.

        Whoever imports mmengine for its own sake beside a Segmenter may have no mmcv: that import
        must not fail because of us.
        """
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            try:
                register()
            except ImportError as error:
                text = f'mmseg_repvgg has registered nothing with mmengine: {error}'
                warnings.warn(text, RuntimeWarning, stacklevel=2)
