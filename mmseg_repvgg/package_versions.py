"""The distributions that provide mmengine, mmcv, mmseg and mmpretrain, and what is wrong with them.

Only the standard library is used: this is for environments in which something is missing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path


@dataclass(frozen=True)
class Distribution:
    """What pip installs, and the versions this package works with."""

    family: str
    module: str  # the module it provides
    lowest: str
    below: str  # the first version that is too new


DISTRIBUTIONS: dict[str, Distribution] = {
    'mmengine': Distribution('openmmlab', 'mmengine', '0.10.7', '1'),
    # mmseg 1.2.2 refuses mmcv 2.2.0 and newer when it is imported.
    'mmcv-lite': Distribution('openmmlab', 'mmcv', '2.0.0', '2.2.0'),
    'mmcv': Distribution('openmmlab', 'mmcv', '2.0.0', '2.2.0'),
    'mmsegmentation': Distribution('openmmlab', 'mmseg', '1.2.2', '2'),
    'mmpretrain': Distribution('openmmlab', 'mmpretrain', '1.2.0', '2'),
    'onedl-mmengine': Distribution('onedl', 'mmengine', '0.10.12', '1'),
    'onedl-mmcv': Distribution('onedl', 'mmcv', '2.3.6', '3'),
    'onedl-mmsegmentation': Distribution('onedl', 'mmseg', '1.4.2', '2'),
    'onedl-mmpretrain': Distribution('onedl', 'mmpretrain', '1.3.6', '2'),
}
"""The limits of the extras in setup.py. If two provide the same, the first is installed."""

MODULES = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain')

PYPI_NAMES = {
    'PIL': 'pillow',
    'cv2': 'opencv-python',
    'google': 'protobuf',
    'modelindex': 'model-index',
    'pkg_resources': "'setuptools<81'",
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml',
}
"""Names on PyPI of modules that the packages here import, where the two differ."""

Providers = Mapping[str, Mapping[str, str]]
"""For each module the distributions that provide it, name and version."""


class Problem(Exception):
    """Something does not work; ``command`` fixes it."""

    def __init__(self, text: str, command: str) -> None:
        super().__init__(text)
        self.command = command


def installed() -> dict[str, dict[str, str]]:
    """The distributions of the modules that an import would find, without importing them.

    Distributions in other folders do not count: two families can be in two folders, and the first
    on the path is used.
    """
    return {module: _providers(module) for module in MODULES}


def family_of(found: Providers) -> str:
    """The family that most of the modules come from; openmmlab if none does."""
    families = [DISTRIBUTIONS[name].family for names in found.values() for name in names]
    return 'onedl' if families.count('onedl') > families.count('openmmlab') else 'openmmlab'


def check_module(module: str, found: Providers) -> str:
    """Say where a module comes from.

    Args:
        module: One of :data:`MODULES`.
        found: As :func:`installed` returns.

    Returns:
        Distribution, version and family.

    Raises:
        Problem: If none or several distributions provide it, or it is of another family than most,
            or of a version that does not work.
    """
    given, family = found[module], family_of(found)
    names = ' and '.join(f'{name} {version}' for name, version in given.items())
    if not given:
        text = f'{module} is not installed'
    elif len(given) > 1:
        text = f'{names} overwrite each other: both provide {module}'
    else:
        ((name, version),) = given.items()
        row = DISTRIBUTIONS[name]
        if row.family != family:
            text = f'{names} is of the {row.family} family, the others are of the {family} family'
        elif not parse(row.lowest) <= parse(version) < parse(row.below):
            text = f'{names} does not work here; allowed are {row.lowest} <= version < {row.below}'
        else:
            return f'{names} ({family})'
    raise Problem(text, install_command(module, given, family))


def install_command(module: str, given: Mapping[str, str], family: str) -> str:
    """The command that installs the right distribution for ``module`` and removes others."""
    wanted, row = next(
        (name, row)
        for name, row in DISTRIBUTIONS.items()
        if (row.family, row.module) == (family, module)
    )
    command = f"pip install '{wanted}>={row.lowest},<{row.below}'"
    if set(given) <= {wanted}:
        return command
    return f'pip uninstall -y {" ".join(given)} && {command}'


def explain_missing(module: str) -> tuple[str, str]:
    """What to install for a module that is missing.

    Returns:
        What is missing, and the command: empty if no package here needs the module, because then
        its name on PyPI is unknown.
    """
    if module in MODULES:
        return f'{module} is not installed', install_command(module, {}, family_of(installed()))
    if module in sys.stdlib_module_names:
        return f'this Python was built without {module}', 'install another build of Python'
    name = PYPI_NAMES.get(module, module)
    is_known = name != module or _normalize(module) in _requirements()
    return f'{name} is not installed', f'pip install {name}' if is_known else ''


def _requirements() -> set[str]:
    """Names of the requirements of all installed packages, and of this one."""
    texts = [text for found in distributions() for text in found.requires or ()]
    names = [re.match(r'[\w.-]+', text) for text in texts]
    return {_normalize(name[0]) for name in names if name} | {'torch', 'torchvision', 'numpy'}


def _normalize(name: str) -> str:
    return re.sub(r'[-_.]+', '-', name).lower()


def parse(version: str) -> tuple[int, ...]:
    """The numbers of a version: '2.2.0rc1+cu118' -> (2, 2, 0). ``packaging`` may be missing."""
    numbers = re.match(r'\d+(\.\d+)*', version)
    return tuple(int(n) for n in numbers[0].split('.')) if numbers else ()


def _providers(module: str) -> dict[str, str]:
    try:
        spec = find_spec(module)
    except ValueError:  # a module without a spec
        spec = None
    if spec is None or spec.origin is None:
        return {}
    names = [name for name, row in DISTRIBUTIONS.items() if row.module == module]
    folder = str(Path(spec.origin).parents[1])
    in_folder = {n: d.version for n in names for d in distributions(name=n, path=[folder])}
    # an editable install keeps its metadata elsewhere
    return in_folder or {n: d.version for n in names for d in distributions(name=n)}
