"""Parts of the package that must not import others, anywhere in their files."""

import ast
from pathlib import Path

import pytest

import mmseg_repvgg

PACKAGE = Path(mmseg_repvgg.__file__).parent
FORBIDDEN = {
    'models': ['accel', 'analysis', 'benchmark', 'deploy', 'engine', 'swap_backbone'],
    'reparam': ['accel', 'checkpoint', 'deploy', 'engine', 'models', 'swap_backbone'],
    'checkpoint': ['accel', 'deploy', 'engine', 'models'],
    'accel': ['checkpoint', 'deploy', 'engine', 'models'],
    'analysis': ['benchmark'],
}


def imported_parts(source: str, package: str) -> set[str]:
    """The parts of ``mmseg_repvgg`` that a module of ``package`` imports, in functions as well."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split('.')[: 1 - node.level or None] if node.level else []
            module = '.'.join([*above, *filter(None, [node.module])])
            names += [f'{module}.{alias.name}' for alias in node.names]
    own = [name.split('.') for name in names]
    return {name[1] for name in own if name[0] == 'mmseg_repvgg' and len(name) > 1}


@pytest.mark.parametrize('part', FORBIDDEN)
def test_a_part_does_not_import_those_that_build_on_it(part):
    files = sorted((PACKAGE / part).rglob('*.py'))
    assert files
    for path in files:
        package = '.'.join([PACKAGE.name, *path.parent.relative_to(PACKAGE).parts])
        found = imported_parts(path.read_text(encoding='utf-8'), package)
        assert not found & set(FORBIDDEN[part]), f'{path} imports {sorted(found)}'


@pytest.mark.parametrize(
    'source',
    [
        'import mmseg_repvgg.accel',
        'import os, mmseg_repvgg.accel.winograd as w',
        'from mmseg_repvgg.accel import use_winograd',
        'from mmseg_repvgg import accel',
        'from ..accel import use_winograd',
        'from ..accel.winograd import use_winograd',
        'from .. import accel',
        'def f():\n    from mmseg_repvgg.accel.nnpack import convolve',
        'if TYPE_CHECKING:\n    import mmseg_repvgg.accel',
    ],
)
def test_every_way_to_import_is_seen(source):
    assert imported_parts(source, 'mmseg_repvgg.models') == {'accel'}
    assert imported_parts('from . import accel', 'mmseg_repvgg.models') == {'models'}
    assert imported_parts('import accel; from accel import models', 'mmseg_repvgg.x') == set()
