"""A Segmenter that runs for long: its memory stays flat, it leaves no file open, it does not drift.

``python -m tests.soak`` runs it over 2,000 images in every runtime.
"""

from dataclasses import replace

import numpy as np
import pytest

from mmseg_repvgg.deploy.runtimes import is_installed
from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import FakeNetwork, brightest_channel
from tests.soak import SUFFIXES, export_tiny, in_a_process, make_images, soak


@pytest.mark.parametrize(
    ('runtime', 'images', 'warmup'),
    [
        pytest.param('onnxruntime', 100, 100, marks=pytest.mark.slow),
        *(pytest.param(r, 2000, 200, marks=pytest.mark.slow) for r in SUFFIXES),
    ],
)
def test_a_soak(tmp_path, runtime, images, warmup):
    if not is_installed(runtime):
        pytest.skip(f'{runtime} is not installed')
    model = export_tiny(tmp_path, SUFFIXES[runtime])
    found = in_a_process(model, runtime, images, warmup)
    assert found.faults() == [], found
    assert found.images == images
    assert found.distinct == 25


class Leaking:
    """Negative controls: keeps memory, keeps files open, or drifts."""

    def __init__(self, what, segmenter):
        self.what, self.segmenter, self.kept = what, segmenter, []

    def __call__(self, file):
        labels = self.segmenter(file)
        if self.what == 'memory grew':
            self.kept.append(np.ones(2**17))  # 1 MiB
        elif self.what == 'file handles are left open':
            self.kept.append(file.open('rb'))
        elif self.what == 'label maps differ':
            self.kept.append(0)
            labels[0, 0] = len(self.kept) % 3
        return labels


@pytest.mark.parametrize(
    'what',
    [
        '',
        # a worker with much freed memory takes what leaks from it: right in a fresh process
        pytest.param('memory grew', marks=pytest.mark.slow),
        'file handles are left open',
        'label maps differ',
    ],
)
def test_a_soak_notices_each_fault(tmp_path, what):
    segmenter = Segmenter(FakeNetwork(lambda x: brightest_channel(x), size=(65, 129)))
    segmenter.network.inputs = type('Forgetful', (), {'append': lambda self, x: None})()
    files = make_images(tmp_path, 5)
    found = soak(Leaking(what, segmenter), files, images=60, warmup=20)
    if what == 'memory grew':  # how much 2 % is depends on what the other tests hold
        assert found.last_mib - found.first_mib > 30
        found = replace(found, first_mib=100, last_mib=100 + found.last_mib - found.first_mib)
    else:
        found = replace(found, last_mib=found.first_mib)
    faults = found.faults()
    assert len(faults) == (what != '') and all(what in fault for fault in faults)
