"""Memory that a process may use: limits of version 1 and 2 of control groups, and none at all."""

import os

import pytest

from mmseg_repvgg.accel import memory_limit as module
from mmseg_repvgg.accel.memory_limit import ASSUMED, memory_limit

GIB = 2**30


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine with 16 GiB; ``limit`` writes the files of its control groups."""
    monkeypatch.setattr(module, 'CGROUPS', tmp_path / 'fs')
    monkeypatch.setattr(module, 'OWN_CGROUPS', tmp_path / 'own')
    names = {'SC_PAGE_SIZE': 4096, 'SC_PHYS_PAGES': 16 * GIB // 4096}
    monkeypatch.setattr(os, 'sysconf', names.__getitem__, raising=False)

    def limit(own: str, **files: str) -> int:
        (tmp_path / 'own').write_text(own)
        for name, text in files.items():
            path = tmp_path / 'fs' / name.replace('__', '/').replace('DOT', '.')
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + '\n')
        return memory_limit()

    return limit


def test_version_2(system):
    assert system('0::/\n', memoryDOTmax='max') == 16 * GIB
    assert system('0::/\n', memoryDOTmax=str(3 * GIB)) == 3 * GIB
    # the limit of a group above acts as well
    assert system('0::/a/b\n', a__memoryDOTmax=str(2 * GIB), a__b__memoryDOTmax='max') == 2 * GIB


def test_version_1(system):
    own = '5:cpu,cpuacct:/x\n4:memory:/docker/1234\n1:name=systemd:/x\n'
    unlimited = '9223372036854771712'
    assert system(own, memory__memoryDOTlimit_in_bytes=unlimited) == 16 * GIB
    # inside a container the path of the host does not exist
    assert system(own, memory__memoryDOTlimit_in_bytes=str(GIB)) == GIB


@pytest.mark.parametrize('lacking', [AttributeError, ValueError, OSError])
def test_a_system_that_does_not_tell(system, monkeypatch, lacking):
    assert memory_limit() == 16 * GIB  # no control groups
    if lacking is AttributeError:  # Windows
        monkeypatch.delattr(os, 'sysconf')
    else:
        monkeypatch.setattr(os, 'sysconf', lambda name: (_ for _ in ()).throw(lacking(name)))
    assert memory_limit() == ASSUMED
