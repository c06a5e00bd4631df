"""Find the base of a child config: a file, or a config that mmseg ships."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

SCOPE = 'mmseg::'
"""mmengine's prefix for configs of the installed mmseg."""


def shipped_folder() -> Path:
    """The folder of the configs that the installed mmseg ships.

    Raises:
        FileNotFoundError: If there is none.
    """
    import mmseg

    package = Path(mmseg.__file__).parent
    # installed from a wheel, or a checkout installed in place
    folders = (package / '.mim' / 'configs', package.parent / 'configs')
    for folder in folders:
        if (folder / '_base_').is_dir():
            return folder
    raise FileNotFoundError(
        f'the installed mmseg ships no configs: neither {folders[0]} nor {folders[1]} holds '
        '_base_. Give the path of a config file'
    )


def shipped_configs() -> list[Path]:
    """Every config that mmseg ships, without the parts in ``_base_``."""
    return sorted(p for p in shipped_folder().glob('*/*.py') if p.parent.name != '_base_')


def find_config(name: str | os.PathLike[str]) -> Path:
    """The file of a config.

    Args:
        name: A path; or a config of the installed mmseg as ``mmseg::pspnet/NAME.py``,
            ``pspnet/NAME.py`` or ``NAME``, with or without ``.py``.

    Raises:
        FileNotFoundError: If there is no such config; lists similar names.
    """
    text = os.fspath(name)
    if not text.startswith(SCOPE) and Path(text).is_file():
        return Path(text)
    wanted = text.removeprefix(SCOPE).removesuffix('.py')
    shipped = {f'{p.parent.name}/{p.stem}': p for p in shipped_configs()}
    found = [p for key, p in shipped.items() if wanted in (key, p.stem)]
    if found:
        return found[0]
    stems = {p.stem: key for key, p in shipped.items()}
    nearest = difflib.get_close_matches(wanted.rpartition('/')[2], stems, n=3, cutoff=0.5)
    raise FileNotFoundError(
        f'config {text} is neither a file nor a config of the installed mmseg '
        f'({shipped_folder()}); near: {", ".join(stems[n] for n in nearest) or "nothing"}'
    )


def load_base(path: Path) -> Config:
    """Read a config and import its ``custom_imports``, if they are installed."""
    cfg = Config.fromfile(str(path), import_custom_modules=False)
    imports = cfg.get('custom_imports')
    if imports:
        # some heads need mmdet, but swapping the backbone does not
        import_modules_from_strings(imports['imports'], allow_failed_imports=True)
    return cfg


def reference(path: Path, out: Path) -> str:
    """The Python expression for ``_base_`` in the child.

    A config that mmseg ships is found in the installed mmseg, on any machine. mmengine's
    ``mmseg::NAME`` needs ``pkg_resources``, which setuptools has removed, and does not work in the
    onedl family, whose distribution has another name. Other configs are relative to the child, so
    that both can be moved together.
    """
    import mmseg

    path, package = path.resolve(), Path(mmseg.__file__).resolve().parent
    if path.is_relative_to(package):
        inside = path.relative_to(package).as_posix()
        return f"__import__('mmseg').__path__[0] + {'/' + inside!r}"
    return repr(Path(os.path.relpath(path, out.resolve().parent)).as_posix())
