"""Freed memory that the process keeps: no page faults in the next step, and whose word it is."""

import os
import platform
import subprocess
import sys

import pytest

from mmseg_repvgg.models import freed_memory
from mmseg_repvgg.models.freed_memory import VARIABLES, keep_freed_memory

STEPS = """
import resource
import torch
from mmseg_repvgg.models.freed_memory import is_kept, keep_freed_memory

if {keep}:
    keep_freed_memory()

def step():
    maps = [torch.ones(10 * 2**20) for _ in range(4)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(3):
    step()
print(is_kept(), faults() - before)
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc only')


def run(keep, **variables):
    environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
    out = subprocess.run(
        [sys.executable, '-c', STEPS.format(keep=keep)],
        env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    kept, faults = out.split()
    return kept == 'True', int(faults)


@needs_glibc
def test_what_is_freed_is_there_for_the_next_step():
    pages = 4 * 40 * 2**20 // 4096
    kept, faults = run(keep=True)
    assert kept and faults < pages // 10
    kept, faults = run(keep=False)  # negative control
    assert not kept and faults > 2 * pages


@needs_glibc
def test_the_users_own_setting_stands():
    kept, faults = run(keep=True, MALLOC_TRIM_THRESHOLD_='131072')
    assert not kept and faults > 0


def test_without_glibc_nothing_is_changed(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(freed_memory, '_kept', False)
    monkeypatch.setattr(freed_memory.ctypes, 'CDLL', lambda name: object())
    assert not keep_freed_memory()
