"""Limits and versions agree in setup.py, the constraints, package_versions.py, doctor, the docs."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from packaging.requirements import Requirement
from packaging.version import Version
from torch import nn

from mmseg_repvgg import doctor
from mmseg_repvgg.accel import nnpack, use_winograd
from mmseg_repvgg.benchmark import forward
from mmseg_repvgg.benchmark import run as benchmark
from mmseg_repvgg.deploy import runtimes, verify_export, write_formats
from mmseg_repvgg.engine import mixed_precision
from mmseg_repvgg.mmcv_stub import missing_operators
from mmseg_repvgg.package_versions import DISTRIBUTIONS
from tests.deploy.networks import described

PROJECT = Path(__file__).parents[1]
PAIRS = {'2.6': '0.21', '2.14': '0.29'}
"""PyTorch and its torchvision: PyTorch's release notes."""


@pytest.fixture
def packaging_of(monkeypatch):
    """What setup.py gives to setuptools."""
    setuptools = pytest.importorskip('setuptools')
    given = {}
    monkeypatch.setattr(setuptools, 'setup', lambda **kwargs: given.update(kwargs))
    runpy.run_path(str(PROJECT / 'setup.py'))
    return given


@pytest.fixture
def requirements(packaging_of):
    """Every requirement of the package and its extras, by name in lower case."""
    lists = [packaging_of['install_requires'], *packaging_of['extras_require'].values()]
    found = [Requirement(text) for texts in lists for text in texts]
    return {requirement.name.lower(): requirement.specifier for requirement in found}


def pinned(name):
    """The versions of a constraints file, those of other Pythons as well."""
    lines = (PROJECT / name).read_text().splitlines()
    found = {}
    for line in lines:
        if line and not line.startswith('#'):
            requirement = Requirement(line)
            ((spec),) = requirement.specifier
            assert spec.operator == '==', line
            found[requirement.name.lower()] = Version(spec.version)
    return found


def lowest(specifier):
    return next((Version(s.version) for s in specifier if s.operator == '>='), None)


def test_the_tested_versions_keep_the_limits(requirements):
    tested = pinned('constraints.txt')
    for name, specifier in requirements.items():
        if name != 'tomli':  # of Python 3.10 only
            assert tested[name] in specifier, name


def test_the_oldest_versions_are_the_lower_limits(requirements):
    oldest = pinned('constraints-oldest.txt')
    assert oldest.pop('torchvision') == Version('0.21.0')
    limits = {n: lowest(s) for n, s in requirements.items() if lowest(s) is not None}
    assert oldest == limits
    newest = pinned('constraints.txt')
    assert all(version <= newest[name] for name, version in oldest.items())


def test_torchvision_belongs_to_pytorch():
    for file in ('constraints.txt', 'constraints-oldest.txt'):
        versions = pinned(file)
        pair = ['.'.join(map(str, versions[n].release[:2])) for n in ('torch', 'torchvision')]
        assert PAIRS[pair[0]] == pair[1], file


@pytest.mark.parametrize('name', [name for name in DISTRIBUTIONS if name != 'mmcv'])
def test_the_doctor_knows_the_limits(packaging_of, requirements, name):
    row = DISTRIBUTIONS[name]
    extra = [Requirement(text).name for text in packaging_of['extras_require'][row.family]]
    assert name in extra
    assert requirements[name] == Requirement(f'{name}>={row.lowest},<{row.below}').specifier


def test_the_doctor_knows_the_lowest_python_and_pytorch(packaging_of, requirements):
    assert packaging_of['python_requires'] == f'>={doctor.PYTHON}'
    assert lowest(requirements['torch']) == Version(doctor.TORCH)


def test_the_documented_matrix_is_that_of_the_files(packaging_of):
    text = (PROJECT / 'docs' / 'versions.md').read_text()
    oldest, tested = pinned('constraints-oldest.txt'), pinned('constraints.txt')
    rows = re.findall(r'^\| `([\w-]+)` \| ([\d.]+) \| ([\d.]+) \|', text, flags=re.MULTILINE)
    found = {name.lower(): (Version(low), Version(high)) for name, low, high in rows}
    assert found.pop('python')[0] == Version(packaging_of['python_requires'].removeprefix('>='))
    assert found == {name: (version, tested[name]) for name, version in oldest.items()}


# Errors about the environment point to the doctor (of registration: tests/test_registration.py).


def no_runtime(folder, monkeypatch):
    monkeypatch.setattr(runtimes, 'find_spec', lambda name: None)
    runtimes.load_runtime(described(folder), 'onnxruntime')


def no_runtime_to_measure(folder, monkeypatch):
    monkeypatch.setattr(forward, 'is_installed', lambda name: False)
    benchmark._select_runtimes(['mnn'])


def no_runtime_to_compare_in(folder, monkeypatch):
    monkeypatch.setattr(verify_export, 'readers', lambda model_format: [])
    monkeypatch.setattr(verify_export, 'run_reference', lambda *_: (None, None))
    verify_export.verify(described(folder), None, np.zeros((8, 12, 3), np.uint8), 'zeros')


def no_writer(folder, monkeypatch):
    monkeypatch.setattr(write_formats, 'find_spec', lambda name: None)
    write_formats._require('onnxscript')


def no_operator(folder, monkeypatch):
    missing_operators(['nms']).nms()


def no_gpu(folder, monkeypatch):
    monkeypatch.setattr(mixed_precision, 'get_device', lambda: 'cpu')
    cfg = Config(dict(optim_wrapper=dict(type='AmpOptimWrapper')))
    mixed_precision.set_precision(cfg, amp=False)


def no_nnpack(folder, monkeypatch):
    monkeypatch.setattr(nnpack, 'is_available', lambda: False)
    use_winograd(nn.Conv2d(4, 4, 3, padding=1))


@pytest.mark.filterwarnings('error:the rewrite')
@pytest.mark.parametrize(
    'lacking',
    [
        no_runtime,
        no_runtime_to_measure,
        no_runtime_to_compare_in,
        no_writer,
        no_operator,
        no_gpu,
        no_nnpack,
    ],
)
def test_errors_about_the_environment_point_to_the_doctor(tmp_path, monkeypatch, lacking):
    with pytest.raises(
        (RuntimeError, ValueError, UserWarning), match=r'python -m mmseg_repvgg\.doc'
    ):
        lacking(tmp_path, monkeypatch)
