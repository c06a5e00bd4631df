"""What a GPU adds to the ways of running a network, told apart without one."""

import numpy as np
import pytest
import torch
from torch import nn

from mmseg_repvgg.benchmark import forward, table4, table8
from mmseg_repvgg.benchmark.forward import EXECUTIONS, forward_pass, is_pytorch
from mmseg_repvgg.benchmark.run import _select_runtimes, run_benchmark

ON_A_GPU = [name for name, e in EXECUTIONS.items() if e.needs_gpu]


class Watched(nn.Conv2d):
    """Notes in which form it was called."""

    def forward(self, x):
        self.dtype = x.dtype
        self.channels_last = x.is_contiguous(memory_format=torch.channels_last)
        cuda = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        self.tf32 = set(cuda) == {True}
        return super().forward(x)


@pytest.mark.parametrize('name', [name for name in EXECUTIONS if is_pytorch(name)])
def test_pytorch_runs_as_the_name_says(name):
    torch.manual_seed(0)
    network, images = Watched(3, 5, 3), torch.randn(2, 3, 9, 8)
    expected = network(images).argmax(1)
    built = forward_pass(network, images, name)
    built.call()
    assert network.dtype == (torch.float16 if 'fp16' in name else torch.float32)
    assert network.channels_last == ('channels_last' in name)
    assert network.tf32 == ('tf32' in name)
    assert np.mean(built.output() == expected.numpy()) > 0.98


@pytest.mark.parametrize('name', ['onnxruntime', 'openvino', 'mnn'])
@pytest.mark.parametrize('is_classifier', [False, True])
def test_runtimes_run_the_exported_network(name, is_classifier):
    torch.manual_seed(0)
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if is_classifier else []
    network, images = nn.Sequential(nn.Conv2d(3, 5, 3), *pool), torch.randn(1, 3, 9, 8)
    expected = network(images).argmax(1).detach()
    built = forward_pass(network, images, name)
    built.call()
    assert np.array_equal(built.output(), expected.numpy())
    assert built.info['file_bytes'] > 4 * built.info['parameters']


def test_a_gpu_adds_its_ways(monkeypatch):
    if not torch.cuda.is_available():
        assert not {*ON_A_GPU} & {*_select_runtimes(None)}
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(forward, 'is_installed', lambda name: name == 'onnxruntime')
    monkeypatch.setattr(forward, '_providers', lambda: [forward.CUDA_PROVIDER])
    assert _select_runtimes(None) == [
        'pytorch',
        'pytorch-tf32',
        'pytorch-channels_last',
        'pytorch-fp16',
        'pytorch-fp16-channels_last',
        'onnxruntime',
        'onnxruntime-cuda',
    ]
    for table in (table4, table8):
        measured = {
            candidate.settings.get('runtime')
            for members in table.groups(_select_runtimes(None), quick=False).values()
            for candidate in members
        }
        assert measured >= {*_select_runtimes(None)}


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('name', ON_A_GPU)
def test_without_a_gpu_it_is_refused(name, tmp_path):
    with pytest.raises(ValueError, match=rf"'{name}' is not available: .*CUDA support, and a GPU"):
        run_benchmark('table1', tmp_path, [name])


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="runtime='tvm' must be one of pytorch, pytorch-tf32"):
        forward_pass(nn.Identity(), torch.zeros(1), 'tvm')
