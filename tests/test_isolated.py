"""Tests that fork or run threads, each file in a fresh process: see ``ISOLATED`` in conftest.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ISOLATED

TESTS = Path(__file__).parent


SLOW = ('deploy/test_killed.py',)


@pytest.mark.parametrize(
    'file', [pytest.param(f, marks=[pytest.mark.slow] * (f in SLOW)) for f in ISOLATED]
)
def test_in_a_process_of_its_own(file, request):
    marks = request.config.option.markexpr
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:xdist', '-m', marks, TESTS / file]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    print(done.stdout[-8000:], done.stderr[-2000:])
    assert done.returncode == 0
    assert re.search(r'[1-9]\d* passed', done.stdout)
