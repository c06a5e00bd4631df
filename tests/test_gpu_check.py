"""tools/gpu_check.py, on the CPU: it runs through, and says what is wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmseg_repvgg import gpu_check
from mmseg_repvgg.gpu_check import SECTIONS, Check, run

TOOL = Path(__file__).parents[1] / 'tools' / 'gpu_check.py'


def call(*options):
    return subprocess.run([sys.executable, TOOL, *options], capture_output=True, text=True)


@pytest.mark.slow
def test_a_quick_run_of_everything():
    done = call('--device', 'cpu', '--quick')
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert list(found) == [*SECTIONS, 'problems']
    assert found['problems'] == []
    assert len(found['speed']) == 3 * 4 * 2  # forms, precisions and layouts
    assert {'training', 'training with AMP', 'fusing'} < set(found['training'])
    assert 'Evaluating the deployed form' in found['training']['training']['hook']
    assert 'mIoU' in found['training']['testing the fused model']['miou']


@pytest.mark.slow
def test_the_sections_that_need_no_training():
    check = Check('cpu', quick=True)
    found = run(check, ['environment', 'equivalence', 'memory'])
    assert check.problems == found['problems'] == []
    assert found['environment']['torch'] == torch.__version__
    assert len(found['equivalence']) == 3 * 2  # precisions and forms of one network
    kept = {kind: row['kept MiB'] for kind, row in found['memory'].items()}
    assert kept['ours'] == kept['mmpretrain'] > 1.3 * kept['recompute_1x1']


@pytest.mark.slow
def test_problems_are_reported_and_the_others_go_on(monkeypatch):
    def wrong(model, names):
        copied, counts = right(model, names)
        next(copied.parameters()).data.neg_()
        return copied, counts

    right = gpu_check.deployed_copy
    monkeypatch.setattr(gpu_check, 'deployed_copy', wrong)
    monkeypatch.setitem(SECTIONS, 'memory', lambda check: 1 / 0)
    check = Check('cpu', quick=True)
    found = run(check, ['memory', 'equivalence', 'environment'])
    assert list(found) == ['equivalence', 'environment', 'problems']
    assert found['problems'][0] == 'memory: ZeroDivisionError: division by zero'
    assert len(found['problems']) == 1 + 3 * 2
    assert 'demo_pspnet_repvgg_a0.py, fused, float32' in found['problems'][1]


def test_wrong_calls():
    done = call('--only', 'temperature', '--device', 'cpu')
    assert done.returncode == 1
    assert "gpu_check: error: sections=['temperature'] are unknown" in done.stderr
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match='PyTorch sees no GPU'):
            run(Check())
