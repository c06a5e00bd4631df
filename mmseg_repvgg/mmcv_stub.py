"""A stand-in for mmcv's compiled operators where they are absent; imports nothing heavy."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

EXTENSION = 'mmcv._ext'


def install() -> None:
    """Have the stand-in found; a second call changes nothing."""
    if not any(isinstance(finder, ExtensionFinder) for finder in sys.meta_path):
        sys.meta_path.append(ExtensionFinder())


class ExtensionFinder(MetaPathFinder, Loader):
    """Finds a stand-in for ``mmcv._ext`` where there is no compiled one.

    mmcv 2.1.0 does not compile against current PyTorch (it asks for C++17, PyTorch needs C++20).
    mmcv-lite and the pure onedl-mmcv have no compiled part, and without it ``mmcv.ops`` and with
    that ``mmseg.utils`` do not import (mmsegmentation issues 3637, 3729, 3763), although nothing a
    PSPNet runs is compiled. As the last of ``sys.meta_path`` this is asked only after every real
    finder has found nothing, so that a compiled extension is always preferred.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Answer for ``mmcv._ext`` only."""
        return ModuleSpec(fullname, self, origin=__name__) if fullname == EXTENSION else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Make the stand-in."""
        return MissingExtension(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is complete."""


class MissingExtension(ModuleType):
    """Stands for ``mmcv._ext``: every operator is there for import and raises when it is called."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Names with an underscore are what tools that walk over all modules ask for: __file__,
        # __path__, __wrapped__. The honest answer is that there are none.
        if name.startswith('_'):
            raise AttributeError(f'module {self.__name__!r} has no attribute {name!r}')

        def operator(*_args: Any, **_kwargs: Any) -> NoReturn:
            raise NotImplementedError(
                f'{name} is a compiled operator of mmcv, and the installed mmcv has none. PSPNet '
                'with a RepVGG or ResNet backbone does not need it. A model that does needs the '
                'full mmcv, built for your PyTorch: pip uninstall mmcv-lite, then mim install '
                "'mmcv>=2.0.0,<2.2.0' (in the onedl family: onedl-mmcv built with its operators). "
                'python -m mmseg_repvgg.doctor says what is installed'
            )

        operator.__name__ = operator.__qualname__ = name
        operator.__module__ = self.__name__
        setattr(self, name, operator)  # the same function the next time
        return operator

    # What mmcv's own collect_env reports where there are no operators; it calls these two.
    @staticmethod
    def get_compiler_version() -> str:
        """Return 'n/a'."""
        return 'n/a'

    @staticmethod
    def get_compiling_cuda_version() -> str:
        """Return 'n/a'."""
        return 'n/a'
