"""A loaded model in a forked process refuses, and says what to do instead, in every runtime."""

import os

import numpy as np
import pytest

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import FORMATS
from mmseg_repvgg.deploy.runtimes import RUNTIMES
from mmseg_repvgg.deploy.segmenter import Segmenter
from tests import processes

IMAGE = np.zeros((49, 70, 3), np.uint8)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
@pytest.mark.parametrize(
    'runtime', [pytest.param(n, marks=[pytest.mark.slow] * (n != 'onnxruntime')) for n in RUNTIMES]
)
def test_a_fork_is_told_to_load_the_model_itself(segmentor, runtime, tmp_path):
    pytest.importorskip(RUNTIMES[runtime].needs)
    cfg, _, checkpoint = segmentor
    out = tmp_path / f'm{FORMATS[RUNTIMES[runtime].formats[0]]}'
    path = export(cfg, checkpoint, out, options=Options(IMAGE.shape[:2])).path
    segmenter = Segmenter(path, runtime, threads=2)
    segmenter(IMAGE)
    log = tmp_path / 'log'
    assert processes.run(segmenter, IMAGE, output=log) == 1
    assert 'was loaded before this process was forked' in log.read_text()
    assert 'load it in each worker process, or start the workers with' in log.read_text()
