"""Lets ``mmcv.ops`` import where mmcv has no compiled operators; imports nothing heavy.

mmcv 2.1.0 does not compile against current PyTorch (it asks for C++17, PyTorch needs C++20).
mmcv-lite and the pure onedl-mmcv have no compiled part. Without it ``mmcv.ops`` does not import,
nor does ``mmseg.utils``, which imports it (mmsegmentation issues 3637, 3729, 3763), although a
PSPNet runs no compiled operator.

All of ``mmcv.ops`` gets its operators from one function, ``mmcv.utils.ext_loader.load_ext``.
This module replaces it: if ``mmcv._ext`` is missing, it returns operators that raise when they are
called. Other libraries must behave as without this package:

* There is no module ``mmcv._ext``: its import fails, and checks for operators (``check_ops_exist``
  of mmcv, ``mmcv_full_available`` of mmengine) find none.
* ``from mmcv.ops import nms`` has to succeed, because mmseg and mmpretrain import such names and do
  not call them. In a library with a fallback (``try: from mmcv.ops import nms; nms(...)``, ``except
  ImportError: from torchvision.ops import nms``), the call raises the error that the import would
  have raised: :class:`MissingOperatorError` is a ``ModuleNotFoundError``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from multiprocessing import current_process
from types import SimpleNamespace
from typing import Any, NoReturn

EXT_LOADER = 'mmcv.utils.ext_loader'
"""The module whose ``load_ext`` is replaced."""


class MissingOperatorError(ModuleNotFoundError, NotImplementedError):
    """A compiled operator of mmcv was called, and the installed mmcv has none."""


def replace_load_ext() -> None:
    """Let ``load_ext`` of the imported mmcv return :func:`missing_operators` if it has none."""
    module: Any = sys.modules[EXT_LOADER]
    load_ext = module.load_ext

    def load_ext_or_missing(name: str, funcs: Iterable[str]) -> Any:
        try:
            return load_ext(name, funcs)
        except ModuleNotFoundError as error:
            if error.name != f'mmcv.{name}':
                raise
        _import_package_in_spawned_children()
        return missing_operators(funcs)

    module.load_ext = load_ext_or_missing


def missing_operators(names: Iterable[str]) -> SimpleNamespace:
    """Operators by name that raise :class:`MissingOperatorError` when they are called."""
    operators = SimpleNamespace(**{name: _missing_operator(name) for name in names})
    # collect_env of mmcv calls these two and reports what they return
    operators.get_compiler_version = operators.get_compiling_cuda_version = lambda: 'n/a'
    return operators


def _missing_operator(name: str) -> Callable[..., NoReturn]:
    def operator(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise MissingOperatorError(
            f'{name} is a compiled operator of mmcv, and the installed mmcv has none. PSPNet with '
            'a RepVGG or ResNet backbone does not need it. A model that does needs the full mmcv, '
            "built for your PyTorch: pip uninstall mmcv-lite, then mim install 'mmcv>=2.0.0,<2.2.0'"
            ' (in the onedl family: onedl-mmcv built with its operators). '
            'python -m mmseg_repvgg.doctor shows what is installed',
            name='mmcv._ext',
        )

    operator.__name__ = operator.__qualname__ = name
    return operator


def _import_package_in_spawned_children() -> None:
    """Let child processes that start empty (Windows, macOS) import this package first.

    A DataLoader worker unpickles a data set of mmseg, which imports ``mmseg.utils`` and
    ``mmcv.ops``. That fails with "No module named 'mmcv._ext'" unless this package was imported
    before. Children unpickle the settings of their parent process, a private attribute, before
    that.
    """
    config: dict[str, Any] = getattr(current_process(), '_config', {})
    config['mmseg_repvgg'] = replace_load_ext  # unpickled by importing this module
