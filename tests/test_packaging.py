"""What pip users get: the files of the wheel and of the source distribution, and their metadata.

Both are built without network and without isolation, from a copy of the project.
"""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from mmseg_repvgg import config_path, shipped_files
from mmseg_repvgg.shipped_files import find_config
from mmseg_repvgg.version import __version__

PROJECT = Path(__file__).parents[1]
FOLDERS = ('mmseg_repvgg', 'configs', 'tools', 'tests', 'docs', 'notebooks')
SHIPPED = ('configs', 'tools')
BUILD = 'import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])("out"))'
NAME = f'mmseg_repvgg-{__version__}'


def build(kind, folder):
    """Build in a folder; return the file."""
    done = subprocess.run(
        [sys.executable, '-W', 'error::DeprecationWarning:setuptools', '-c', BUILD, kind],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / 'out' / done.stdout.split()[-1]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """The source distribution of a copy of the project, which has leftovers in it."""
    pytest.importorskip('setuptools')
    folder = tmp_path_factory.mktemp('copy') / 'project'
    folder.mkdir()
    for path in PROJECT.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    for name in FOLDERS:
        skip = shutil.ignore_patterns('__pycache__')
        shutil.copytree(PROJECT / name, folder / name, ignore=skip)
    for name in SHIPPED:
        (folder / name / '__pycache__').mkdir()
        (folder / name / '__pycache__' / 'x.cpython-311.pyc').touch()
    return build('build_sdist', folder)


@pytest.fixture(scope='module')
def unpacked(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp('source')
    with tarfile.open(source) as archive:
        archive.extractall(folder)
    (project,) = folder.iterdir()
    return project


@pytest.fixture(scope='module')
def wheel(unpacked):
    """The wheel that the source distribution builds."""
    return build('build_wheel', unpacked)


@pytest.fixture(scope='module')
def site(wheel, tmp_path_factory):
    """A folder as site-packages, with the wheel in it."""
    folder = tmp_path_factory.mktemp('site')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope='module')
def metadata(site):
    return message_from_string((site / f'{NAME}.dist-info' / 'METADATA').read_text())


def files(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    }


def test_the_wheel_holds_the_package_and_what_mim_reads(site):
    expected = {f'mmseg_repvgg/{name}' for name in files(PROJECT / 'mmseg_repvgg')}
    for folder in SHIPPED:
        expected |= {f'mmseg_repvgg/.mim/{folder}/{name}' for name in files(PROJECT / folder)}
    expected.add('mmseg_repvgg/.mim/model-index.yml')
    found = {name for name in files(site) if '.dist-info/' not in name}
    assert found == expected
    for name in ('configs/pspnet_repvgg_b2.py', 'tools/train.py', 'model-index.yml'):
        text = (site / 'mmseg_repvgg' / '.mim' / name).read_bytes()
        assert text == (PROJECT / name).read_bytes()


def test_a_wheel_of_the_checkout_is_the_same(source, wheel):
    project = source.parents[1]
    stale = project / 'build' / 'lib' / 'mmseg_repvgg' / '.mim' / 'configs' / 'removed.py'
    stale.parent.mkdir(parents=True)
    stale.touch()  # left by the build of an older version

    def contents(file):
        with zipfile.ZipFile(file) as archive:
            return {info.filename: info.CRC for info in archive.infolist()}

    assert contents(build('build_wheel', project)) == contents(wheel)


def test_the_source_distribution_has_what_its_tests_need(unpacked):
    found = files(unpacked)
    for folder in FOLDERS:
        assert {f'{folder}/{name}' for name in files(PROJECT / folder)} <= found
    others = 'LICENSE README.md CHANGELOG.md CITATION.cff constraints.txt Makefile model-index.yml'
    assert set(others.split()) <= found
    assert not [name for name in found if name.endswith('.pyc')]


def test_the_metadata(metadata, site):
    assert metadata['Name'] == 'mmseg-repvgg'
    assert metadata['Version'] == __version__
    assert 'Apache-2.0' in (metadata['License-Expression'] or metadata['License'])
    assert metadata['Requires-Python'] == '>=3.10'
    assert 'repvgg' in metadata['Keywords']
    assert any(url.startswith('Paper, ') for url in metadata.get_all('Project-URL'))
    versions = [c for c in metadata.get_all('Classifier') if re.search(r':: 3\.\d+$', c)]
    assert versions[0].endswith('3.10')
    assert metadata['Description-Content-Type'] == 'text/markdown'
    points = (site / f'{NAME}.dist-info' / 'entry_points.txt').read_text()
    assert 'mmseg-repvgg = mmseg_repvgg.cli:main' in points
    assert (site / f'{NAME}.dist-info' / 'top_level.txt').read_text() == 'mmseg_repvgg\n'


def test_the_version_is_the_same_everywhere():
    citation = (PROJECT / 'CITATION.cff').read_text()
    assert f'\nversion: {__version__}\n' in citation
    (date,) = re.findall(r'^date-released: (.+)$', citation, flags=re.MULTILINE)
    sections = re.findall(r'^## (.+)$', (PROJECT / 'CHANGELOG.md').read_text(), flags=re.MULTILINE)
    assert next(s for s in sections if s != 'Unreleased') == f'{__version__} ({date})'


def requirements(metadata, extra=None):
    from packaging.requirements import Requirement

    lines = map(Requirement, metadata.get_all('Requires-Dist'))
    return {
        r.name
        for r in lines
        if (r.marker is None if extra is None else r.marker and r.marker.evaluate({'extra': extra}))
    }


HEAVY = {'torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation', 'mmpretrain'}


def test_a_service_gets_a_runtime_and_neither_pytorch_nor_mm_packages(metadata):
    assert requirements(metadata) == {'numpy', 'tqdm'}
    for extra, package in (('onnxruntime',) * 2, ('openvino',) * 2, ('mnn', 'MNN')):
        assert requirements(metadata, extra) == {'opencv-python-headless', 'pillow', package}


def test_a_family_brings_all_that_training_needs(metadata):
    train = requirements(metadata, 'train')
    assert {'torch', 'torchvision', 'pillow', 'safetensors', 'cityscapesscripts'} == train
    assert {'mmsegmentation', 'mmengine', 'mmcv-lite'} | train < requirements(metadata, 'openmmlab')
    onedl = {'onedl-mmsegmentation', 'onedl-mmengine', 'onedl-mmcv'}
    assert onedl | train < requirements(metadata, 'onedl')
    # two variants of OpenCV overwrite each other
    for extra in ('train', 'openmmlab', 'onedl', 'deploy', 'dev'):
        assert not [n for n in requirements(metadata, extra) if n.startswith('opencv')]


# The README on an index page.

LINK = re.compile(r'!?\[[^\]]*\]\(([^)]+)\)')


@pytest.fixture(scope='module')
def setup_py():
    setuptools = pytest.importorskip('setuptools')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, 'setup', lambda **kwargs: None)
        return runpy.run_path(str(PROJECT / 'setup.py'))


def test_the_index_page_has_no_relative_link(metadata):
    text = metadata.get_payload()
    links = LINK.findall(text)
    assert links
    assert all(link.startswith('https://') for link in links)
    assert 'for [mmsegmentation](https://github.com/open-mmlab/mmsegmentation)' in text


def test_links_of_the_index_page(setup_py):
    page = setup_py['index_page']
    text = 'see [docs/a.md](docs/a.md), [b](b.md#c), ![p](p.png) and [d](https://d.org), [e](#e)'
    assert page(text, '') == 'see `docs/a.md`, b,  and [d](https://d.org), [e](#e)'
    home, tag = 'https://example.org/x', f'v{__version__}'
    assert page(text, home) == (
        f'see [docs/a.md]({home}/blob/{tag}/docs/a.md), [b]({home}/blob/{tag}/b.md#c), '
        f'![p]({home}/raw/{tag}/p.png) and [d](https://d.org), [e](#e)'
    )


# Configs of the installed package.


def run(site, folder, *command):
    """Run Python in a folder where only the installed package is found."""
    path = [str(site), *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))]
    path = [p for p in path if Path(p) != PROJECT]
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(path)},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


INHERIT = """
_base_ = __import__('mmseg_repvgg').config_path('pspnet_repvgg_b2.py')
model = dict(backbone=dict(arch='B1'))
"""


def test_a_config_inherits_from_one_of_the_installed_package(site, tmp_path):
    (tmp_path / 'mine.py').write_text(INHERIT)
    code = """
import mmseg_repvgg
from mmengine.config import Config
cfg = Config.fromfile('mine.py')
print(mmseg_repvgg.__file__, cfg.model.backbone.arch, cfg.model.decode_head.type)
"""
    file, *found = run(site, tmp_path, '-c', code).split()[-3:]
    assert Path(file).is_relative_to(site)
    assert found == ['B1', 'PSPHead']


def test_the_installed_command(site, tmp_path):
    assert run(site, tmp_path, '-m', 'mmseg_repvgg', '--version').split()[1] == __version__
    help_text = run(site, tmp_path, site / 'mmseg_repvgg' / '.mim' / 'tools' / 'train.py', '-h')
    assert '--launcher' in help_text  # what mim train asks for


def test_commands_find_a_config_by_name(site, tmp_path):
    words = ('configs/demo_pspnet_repvgg_a0.py', '--crop', 65, 97)
    text = run(site, tmp_path, '-m', 'mmseg_repvgg', 'estimate-memory', *words)
    assert 'batch 4, crops of 65x97' in text


def test_in_a_checkout_the_configs_are_next_to_the_package():
    assert config_path('dropin/fcn_repvgg_a1.py') == str(
        PROJECT / 'configs' / 'dropin' / 'fcn_repvgg_a1.py'
    )
    with pytest.raises(FileNotFoundError, match=r'x\.py is not a config of mmseg_repvgg; they'):
        config_path('x.py')


def test_a_file_of_the_user_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = PROJECT / 'configs' / 'pspnet_r50.py'
    for name in ('pspnet_r50.py', 'configs/pspnet_r50.py'):
        assert find_config(name) == str(shipped)
    Path('pspnet_r50.py').touch()
    assert find_config('pspnet_r50.py') == 'pspnet_r50.py'
    with pytest.raises(FileNotFoundError, match=r'config pspnet_r5\.py not found: neither a file'):
        find_config('pspnet_r5.py')


def test_a_package_without_its_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped_files, '__file__', str(tmp_path / 'mmseg_repvgg' / 'x.py'))
    with pytest.raises(FileNotFoundError, match='installed without its configs'):
        config_path('pspnet_repvgg_b2.py')


# With pip and network.


@pytest.mark.slow
@pytest.mark.parametrize('extra', ['onnxruntime', 'openvino', 'mnn'])
def test_a_service_in_an_environment_of_its_own(wheel, tmp_path, extra):
    """Also trains nothing: the message says what to install."""
    venv.create(tmp_path / 'venv', with_pip=True)
    python = tmp_path / 'venv' / ('Scripts' if os.name == 'nt' else 'bin') / 'python'
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}

    def call(*command, code=0):
        done = subprocess.run(
            [python, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    installing = ('-m', 'pip', 'install', '-q', f'{wheel}[{extra}]')
    done = subprocess.run([python, *installing], env=environment, capture_output=True, text=True)
    if 'No matching distribution found for' in done.stderr:
        pytest.skip('no package index can be reached')
    assert done.returncode == 0, done.stderr
    assert 'No broken requirements found' in call('-m', 'pip', 'check')
    names = {line.split('==')[0] for line in call('-m', 'pip', 'freeze').splitlines()}
    assert not names & HEAVY
    report = call('-m', 'mmseg_repvgg', 'doctor')
    assert re.search(rf'ok +{extra} ', report)
    assert re.search(r'ok +segmenting ', report)
    assert 'Everything needed works' in report
    assert 'usage: mmseg-repvgg predict' in call('-m', 'mmseg_repvgg', 'predict', '-h')
    assert "pip install 'mmseg-repvgg[openmmlab]'" in call('-m', 'mmseg_repvgg', 'train', code=1)
