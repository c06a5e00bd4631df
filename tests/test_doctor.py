"""The doctor: right environments pass, and each simulated problem is named with its command."""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmseg_repvgg import doctor, package_versions
from mmseg_repvgg.package_versions import DISTRIBUTIONS, MODULES, Problem, check_module, family_of

PROJECT = Path(__file__).parents[1]
OPENMMLAB = {
    'mmengine': {'mmengine': '0.10.7'},
    'mmcv': {'mmcv-lite': '2.1.0'},
    'mmseg': {'mmsegmentation': '1.2.2'},
    'mmpretrain': {'mmpretrain': '1.2.0'},
}
ONEDL = {
    'mmengine': {'onedl-mmengine': '0.10.12'},
    'mmcv': {'onedl-mmcv': '2.3.6'},
    'mmseg': {'onedl-mmsegmentation': '1.4.2'},
    'mmpretrain': {'onedl-mmpretrain': '1.3.6'},
}


# Which distributions there are.


def test_the_limits_are_those_of_setup_py():
    text = (PROJECT / 'setup.py').read_text()
    for name, row in DISTRIBUTIONS.items():
        if name != 'mmcv':  # in no extra: it has to be built
            assert f"'{name}>={row.lowest},<{row.below}'," in text, name
    assert f"python_requires='>={doctor.PYTHON}'" in text
    assert f"'torch>={doctor.TORCH}'" in text
    full, lite = DISTRIBUTIONS['mmcv'], DISTRIBUTIONS['mmcv-lite']
    assert full == lite
    assert {row.module for row in DISTRIBUTIONS.values()} == set(MODULES)


@pytest.mark.parametrize('found', [OPENMMLAB, ONEDL], ids=['openmmlab', 'onedl'])
def test_a_whole_family_is_right(found):
    for module in MODULES:
        ((name, version),) = found[module].items()
        assert check_module(module, found) == f'{name} {version} ({family_of(found)})'


LITE = "pip install 'mmcv-lite>=2.0.0,<2.2.0'"
SEG = "pip install 'mmsegmentation>=1.2.2,<2'"
PROBLEMS = {
    'missing': (OPENMMLAB, 'mmseg', {}, 'mmseg is not installed', SEG),
    'missing in onedl': (
        ONEDL,
        'mmcv',
        {},
        'mmcv is not installed',
        "pip install 'onedl-mmcv>=2.3.6,<3'",
    ),
    'too old': (
        OPENMMLAB,
        'mmengine',
        {'mmengine': '0.10.4'},
        'mmengine 0.10.4 does not work here; allowed are 0.10.7 <= version < 1',
        "pip install 'mmengine>=0.10.7,<1'",
    ),
    'lite past the cap of mmseg': (
        OPENMMLAB,
        'mmcv',
        {'mmcv-lite': '2.2.0'},
        'mmcv-lite 2.2.0 does not work here; allowed are 2.0.0 <= version < 2.2.0',
        LITE,
    ),
    'full past the cap of mmseg': (
        OPENMMLAB,
        'mmcv',
        {'mmcv': '2.2.0'},
        'mmcv 2.2.0 does not work here; allowed are 2.0.0 <= version < 2.2.0',
        f'pip uninstall -y mmcv && {LITE}',
    ),
    'mmcv 1': (
        OPENMMLAB,
        'mmcv',
        {'mmcv': '1.7.2+cu118'},
        'mmcv 1.7.2+cu118 does not work here',
        f'pip uninstall -y mmcv && {LITE}',
    ),
    'full and lite': (
        OPENMMLAB,
        'mmcv',
        {'mmcv-lite': '2.1.0', 'mmcv': '2.1.0'},
        'mmcv-lite 2.1.0 and mmcv 2.1.0 overwrite each other: both provide mmcv',
        f'pip uninstall -y mmcv-lite mmcv && {LITE}',
    ),
    'both families in one place': (
        OPENMMLAB,
        'mmseg',
        {'mmsegmentation': '1.2.2', 'onedl-mmsegmentation': '1.4.2'},
        'mmsegmentation 1.2.2 and onedl-mmsegmentation 1.4.2 overwrite each other',
        f'pip uninstall -y mmsegmentation onedl-mmsegmentation && {SEG}',
    ),
    'one of the other family': (
        ONEDL,
        'mmpretrain',
        {'mmpretrain': '1.2.0'},
        'mmpretrain 1.2.0 is of the openmmlab family, the others are of the onedl family',
        "pip uninstall -y mmpretrain && pip install 'onedl-mmpretrain>=1.3.6,<2'",
    ),
}


@pytest.mark.parametrize('case', PROBLEMS)
def test_each_wrong_distribution_is_named_with_its_command(case):
    base, module, given, text, command = PROBLEMS[case]
    found = {**base, module: given}
    with pytest.raises(Problem, match=re.escape(text)) as error:
        check_module(module, found)
    assert error.value.command == command
    for other in set(MODULES) - {module}:  # nothing else is complained of
        check_module(other, found)


@pytest.mark.parametrize(
    ('version', 'numbers'),
    [('2.2.0rc1', (2, 2, 0)), ('0.10.7', (0, 10, 7)), ('2.14.1+cu130', (2, 14, 1)), ('x', ())],
)
def test_versions(version, numbers):
    assert package_versions.parse(version) == numbers


def fake_package(folder, module, name, version, code=''):
    """Lay a module and its distribution's metadata into a folder, as pip does."""
    (folder / module).mkdir(parents=True)
    (folder / module / '__init__.py').write_text(f'__version__ = {version!r}\n{code}\n')
    info = folder / f'{name.replace("-", "_")}-{version}.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')


def test_what_an_import_would_find_counts(tmp_path, monkeypatch, family):
    assert family_of(package_versions.installed()) == family
    for name in ('onedl-mmcv', 'mmcv'):
        fake_package(tmp_path / name, 'mmcv', name, '2.0.0')
    monkeypatch.delitem(sys.modules, 'mmcv', raising=False)
    for name in ('onedl-mmcv', 'mmcv'):
        monkeypatch.syspath_prepend(tmp_path / name)
        assert package_versions.installed()['mmcv'] == {name: '2.0.0'}
    monkeypatch.setitem(sys.modules, 'mmcv', None)  # as if there were none
    assert package_versions.installed()['mmcv'] == {}


# The checks.


def test_this_environment_passes(capsys):
    """The tests run in an environment with everything that is needed."""
    results = {result.check.name: result for result in doctor.examine()}
    assert {name: r.text for name, r in results.items() if r.is_fatal} == {}
    for name in ('torch', *MODULES, 'in mmseg', 'in mmpretrain', 'fusing', 'reading'):
        assert results[name].state == 'ok', results[name]
    assert {r.state for r in results.values()} <= {'ok', 'absent'}
    assert 'INFO' not in capsys.readouterr().out


def only(run, **kwargs):
    (result,) = doctor.examine((doctor.Check('it', run, 'mend it', **kwargs),))
    return result


def failing(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ('error', 'state', 'text', 'command'),
    [
        (AssertionError('MMCV==2.2.0\nis used'), 'FAIL', 'AssertionError: MMCV==2.2.0 is used', 0),
        (ModuleNotFoundError('', name='ftfy'), 'FAIL', 'ftfy is not installed', 'pip install ftfy'),
        (
            ModuleNotFoundError('', name='cv2'),
            'FAIL',
            'opencv-python is not installed',
            'pip install opencv-python',
        ),
        (ModuleNotFoundError('', name='yaml'), 'FAIL', 'pyyaml is not', 'pip install pyyaml'),
        (ModuleNotFoundError('', name='no_package'), 'FAIL', 'no_package is not installed', 0),
        (
            ModuleNotFoundError('', name='_bz2'),
            'FAIL',
            'this Python was built without _bz2',
            'install another build of Python',
        ),
        (ModuleNotFoundError("No module named 'a.b'", name='a.b'), 'FAIL', "module named 'a.b'", 0),
        (ImportError('libGL.so.1: cannot open'), 'FAIL', 'ImportError: libGL.so.1', 0),
        (SystemExit(3), 'FAIL', 'SystemExit: 3', 0),
        (doctor.Absent('no it', 'pip install it'), 'absent', 'no it', 'pip install it'),
    ],
)
def test_whatever_a_check_raises_is_a_result(error, state, text, command):
    result = only(failing(error))
    assert (result.state, result.command) == (state, command or 'mend it')
    assert text in result.text
    assert result.is_fatal == (state == 'FAIL')
    assert not only(failing(error), needed=False).is_fatal


def test_what_builds_on_something_broken_is_skipped():
    checks = (
        doctor.Check('a', failing(OSError('no')), 'mend a'),
        doctor.Check('b', lambda: 'never', 'mend b', after=('a',)),
        doctor.Check('c', lambda: 'never', 'mend c', after=('b',)),
        doctor.Check('d', lambda: 'fine', 'mend d'),
    )
    found = [(r.check.name, r.state, r.text) for r in doctor.examine(checks)]
    assert found[1:] == [
        ('b', 'skipped', 'needs a'),
        ('c', 'skipped', 'needs b'),
        ('d', 'ok', 'fine'),
    ]


@pytest.mark.parametrize('needed', [True, False])
def test_the_exit_code_and_one_command_per_problem(monkeypatch, capsys, needed):
    checks = (
        doctor.Check('a', failing(OSError('no')), 'mend a', needed=needed),
        doctor.Check('b', lambda: 'never', 'mend b', after=('a',)),
    )
    monkeypatch.setattr(doctor, 'all_checks', lambda: checks)
    assert doctor.main([]) == int(needed)
    out = capsys.readouterr().out
    assert f'Problem 1, a ({"needed" if needed else "optional"}): OSError: no\n    mend a\n' in out
    assert 'mend b' not in out
    assert ('Everything needed works' in out) == (not needed)


def by_name(name):
    return next(check for check in doctor.all_checks() if check.name == name)


def result_of(name):
    (result,) = doctor.examine((by_name(name),))
    return result


def test_python_and_torch_that_are_too_old(monkeypatch):
    monkeypatch.setattr(platform, 'python_version', lambda: '3.9.18')
    monkeypatch.setattr(torch, '__version__', '2.5.1+cpu')
    assert 'Python 3.9.18 is too old; 3.10 or newer is needed' in result_of('python').text
    result = result_of('torch')
    assert 'PyTorch 2.5.1+cpu is too old' in result.text
    assert result.command == "pip install 'torch>=2.6' torchvision"


def test_opencv_without_its_system_libraries(tmp_path, monkeypatch):
    code = "raise ImportError('libGL.so.1: cannot open shared object file')"
    fake_package(tmp_path, 'cv2', 'opencv-python', '4.9.0', code)
    monkeypatch.delitem(sys.modules, 'cv2', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    result = result_of('opencv')
    assert result.is_fatal
    assert 'libGL.so.1' in result.text
    assert result.command == 'pip uninstall -y opencv-python && pip install opencv-python-headless'


@pytest.mark.parametrize('module', ['onnxruntime', 'openvino', 'MNN'])
def test_runtimes_may_be_absent_but_not_broken(tmp_path, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    result = result_of(module.lower())
    assert (result.state, result.command) == ('absent', f'pip install {module}')
    fake_package(tmp_path, module, module, '9.0', "raise ImportError('undefined symbol')")
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    result = result_of(module.lower())
    assert (result.state, result.is_fatal) == ('FAIL', False)
    assert result.command == f'pip install --force-reinstall {module}'


@pytest.fixture
def service(monkeypatch):
    """An environment with runtimes, and nothing to train with."""
    for module in ('torch', *MODULES):
        monkeypatch.setitem(sys.modules, module, None)


def test_a_service_needs_no_pytorch(service):
    results = {result.check.name: result for result in doctor.examine()}
    assert not [r.text for r in results.values() if r.is_fatal]
    assert 'torch' not in results
    assert (results['segmenting'].state, results['training'].state) == ('ok', 'absent')
    assert results['training'].command.startswith("pip install 'mmseg-repvgg[openmmlab]'")


def test_a_service_needs_opencv_and_right_labels(service, monkeypatch):
    from mmseg_repvgg.deploy.segmenter import Segmenter

    right = Segmenter.__call__
    monkeypatch.setattr(Segmenter, '__call__', lambda self, image: 1 - right(self, image))
    assert 'the labels of a half bright image are [[1, ' in result_of('segmenting').text
    monkeypatch.setitem(sys.modules, 'cv2', None)
    states = {r.check.name: r.state for r in doctor.examine()}
    assert (states['opencv'], states['segmenting']) == ('FAIL', 'skipped')


def test_an_environment_with_nothing_is_not_a_service(service, monkeypatch):
    for module in doctor.RUNTIMES:
        monkeypatch.setitem(sys.modules, module, None)
    assert not doctor.is_service()


def test_a_pytorch_that_cannot_use_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.version, 'cuda', None)
    monkeypatch.setattr(Path, 'exists', lambda path: str(path) == '/proc/driver/nvidia')
    result = result_of('cuda')
    assert (result.state, result.is_fatal) == ('FAIL', False)
    assert 'this PyTorch is built without CUDA' in result.text
    monkeypatch.setattr(Path, 'exists', lambda path: False)
    assert 'none; no GPU is seen' in result_of('cuda').text


def test_wrong_fusing_is_caught(monkeypatch):
    from mmseg_repvgg.models import RepVGGBlock

    right = RepVGGBlock.get_equivalent_kernel_bias

    def wrong(block):
        kernel, bias = right(block)
        return kernel.roll(1, dims=2), bias

    monkeypatch.setattr(RepVGGBlock, 'get_equivalent_kernel_bias', wrong)
    assert 'EquivalenceError: a small backbone' in result_of('fusing').text


@pytest.mark.parametrize('scope', ['mmseg', 'mmpretrain'])
def test_a_backbone_that_is_not_registered_is_noticed(monkeypatch, scope):
    from mmengine.registry import MODELS

    monkeypatch.delitem(MODELS._module_dict, 'DilatedRepVGG')
    result = result_of(f'in {scope}')
    assert 'DilatedRepVGG is not in' in result.text
    assert result.command == f'pip install --force-reinstall --no-deps {PROJECT}'
    assert result.is_fatal == (scope == 'mmseg')


def test_a_reader_that_runs_code_is_noticed(monkeypatch):
    from mmengine.runner import CheckpointLoader

    from mmseg_repvgg.checkpoint import mmengine_loader

    def unsafe(filename, map_location=None):
        return torch.load(filename, map_location, weights_only=False)

    monkeypatch.setattr(CheckpointLoader, '_schemes', {'': unsafe})
    monkeypatch.setattr(mmengine_loader, 'install', lambda: None)
    assert "mmengine's loader ran what was in a file" in result_of('reading').text


@pytest.mark.parametrize('module', MODULES)
def test_the_command_for_a_module_names_its_distribution(monkeypatch, family, module):
    """PyPI has packages named mmseg and mmpretrain, too; the first is of somebody else."""
    found = {**(ONEDL if family == 'onedl' else OPENMMLAB), module: {}}
    for place in (doctor, package_versions):
        monkeypatch.setattr(place, 'installed', lambda: found)
    wanted = dict(ONEDL if family == 'onedl' else OPENMMLAB)[module]
    (name,) = wanted
    result = only(failing(ModuleNotFoundError('', name=module)))
    assert result.command.startswith(f"pip install '{name}>=")
    assert doctor._mm_check(module, parts=()).command.startswith(f"pip install '{name}>=")


def test_reinstalling_where_there_is_no_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, '__file__', str(tmp_path / 'mmseg_repvgg' / 'doctor.py'))
    fake_package(tmp_path, 'mmseg_repvgg', 'mmseg-repvgg', '9.0')
    url = 'https://example.org/mmseg-repvgg.zip'
    (tmp_path / 'mmseg_repvgg-9.0.dist-info' / 'direct_url.json').write_text(f'{{"url": "{url}"}}')
    monkeypatch.syspath_prepend(tmp_path)
    assert doctor._reinstall_package() == f'pip install --force-reinstall --no-deps {url}'


def test_operators_built_for_another_pytorch(tmp_path, monkeypatch):
    """A compiled extension that does not load is shown; the lite mmcv has none."""
    monkeypatch.setattr(doctor, 'installed', lambda: {**OPENMMLAB, 'mmcv': {'mmcv': '2.1.0'}})
    monkeypatch.setattr(doctor, 'import_module', failing_import('mmcv.ops', 'undefined symbol'))
    result = result_of('mmcv')
    assert 'ImportError: undefined symbol' in result.text
    assert result.command == f'pip uninstall -y mmcv && {LITE}'


def failing_import(module, text):
    def import_module(name):
        if name == module:
            raise ImportError(text)

    return import_module


# As a user calls it, in a process of its own.


def call(*path, options=()):
    return subprocess.run(
        [sys.executable, *options, '-m', 'mmseg_repvgg.doctor'],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, path))},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_an_mmcv_that_mmseg_refuses(tmp_path):
    fake_package(tmp_path, 'mmengine', 'mmengine', '0.10.7')
    (tmp_path / 'mmengine' / 'runner.py').touch()
    fake_package(tmp_path, 'mmcv', 'mmcv', '2.2.0')
    fake_package(tmp_path, 'mmseg', 'mmsegmentation', '1.2.2', "assert 0, 'MMCV==2.2.0 is used'")
    done = call(tmp_path, *filter(None, sys.path))
    assert done.returncode == 1, done.stderr
    text = 'mmcv 2.2.0 does not work here; allowed are 2.0.0 <= version < 2.2.0'
    assert f'{text}\n    pip uninstall -y mmcv && {LITE}\n' in done.stdout
    assert re.search(r'skipped +mmseg +needs mmcv', done.stdout)
    assert 'Traceback' not in done.stderr


def test_where_nothing_is_installed():
    """An interpreter without site-packages."""
    done = call(PROJECT, options=['-S'])
    assert done.returncode == 1, done.stderr
    for name in ('torch', 'numpy'):
        assert f'{name} is not installed\n    pip install {name}\n' in done.stdout
    assert re.search(r'skipped +fusing +needs torch', done.stdout)
    assert 'Traceback' not in done.stderr
