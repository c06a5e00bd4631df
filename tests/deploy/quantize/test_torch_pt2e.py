"""PyTorch files in int8, by torchao."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.quantize.options import Int8Options
from mmseg_repvgg.deploy.quantize.torch_pt2e import quantize_torch
from mmseg_repvgg.deploy.runtimes import load_runtime
from mmseg_repvgg.deploy.write_formats import write_torch

pytest.importorskip('torchao')

SIZE = (64, 128)
COUNT = """
import sys
import numpy as np
from mmseg_repvgg.deploy.runtimes import load_runtime
from torch._dynamo.utils import counters
load_runtime(sys.argv[1])(np.zeros((1, 3, 64, 128), np.float32))
print(counters['inductor']['qconv_weight_prepack_matcher_count'])
"""
LOOSE = dict(images=3, check_images=3, agreement=0, miou_drop=100)  # random features


def two_convs():
    """Two convs with ReLU and a conv that stays in float, with weights of very different sizes."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3)]
    network = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
    network[0].weight.data[0] *= 30
    return network


def quantized(network, folder, images, in_float=(), **options):
    """The rounded program of a network, run without the compiler, and its graph."""
    source, out = folder / 'f.pt2', folder / 'q.pt2'
    shapes = dict(images={0: torch.export.Dim.DYNAMIC})
    wrapped = Wrapped(network)
    program = torch.export.export(wrapped, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
    write_torch(program, source, '')
    quantize_torch(source, out, images, Int8Options(**options), in_float)
    return torch.export.load(out)


class Wrapped(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)


def rounded(values, low, high, steps):
    scale = (high - low) / steps
    zero = np.round(-low / scale)
    return (np.clip(np.round(values / scale) + zero, 0, steps) - zero) * scale


@pytest.mark.parametrize('per_tensor', [False, True])
def test_a_conv_is_rounded_as_by_hand(tmp_path, per_tensor):
    """Maps from their smallest to their largest value in 256 steps, weights in 255 around 0."""
    rng = np.random.default_rng(0)
    images = [rng.normal(size=(1, 3, 8, 8)).astype(np.float32) for _ in range(2)]
    network = two_convs()[:2]
    program = quantized(network, tmp_path, images, per_tensor=per_tensor)
    found = program.module()(torch.from_numpy(np.concatenate(images))).detach().numpy()
    conv = network[0]
    weight = conv.weight.detach().numpy()
    largest = np.abs(weight).max(axis=None if per_tensor else (1, 2, 3), keepdims=True)
    weight = np.round(weight / largest * 127) * largest / 127
    stack = np.concatenate(images)
    maps = rounded(stack, min(stack.min(), 0), max(stack.max(), 0), 255)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(maps).float(),
        torch.from_numpy(weight).float(),
        conv.bias.detach(),
        padding=1,
    ).relu()
    assert np.abs(found - expected.numpy()).max() < 1e-2 * expected.abs().max()
    unrounded = network(torch.from_numpy(stack)).detach()
    assert np.abs(found - unrounded.numpy()).max() > 0


def test_layers_stay_in_float_and_7_bits_are_64_steps(tmp_path):
    images = [np.ones((1, 3, 8, 8), np.float32)]
    network = two_convs()
    kept = [network[0].weight.detach().numpy(), network[4].weight.detach().numpy()]
    program = quantized(network, tmp_path, images, kept, weight_bits=7)
    weights = [t for t in program.state_dict.values() if t.dtype == torch.int8]
    assert [tuple(t.shape) for t in weights] == [(4, 8, 3, 3)]
    assert weights[0].abs().max() == 64
    values = [t for t in program.state_dict.values() if t.dtype == torch.float32 and t.dim() == 4]
    assert sorted(tuple(t.shape) for t in values) == [(2, 4, 1, 1), (8, 3, 3, 3)]
    with pytest.raises(ValueError, match='1 of 1 layers that stay in float are not in'):
        quantized(network, tmp_path, images, [np.ones((4, 8, 3, 3), np.float32)])


@pytest.mark.slow
def test_an_export_runs_compiled(segmentor, tmp_path):
    cfg, _, checkpoint = segmentor
    options = Options(SIZE, dynamic_batch=True, int8=Int8Options(**LOOSE))
    report = export(cfg, checkpoint, tmp_path / 'm.pt2', options=options)
    assert {path.name for path in tmp_path.iterdir()} == {'m.pt2', 'm.pt2.json'}
    assert report.info.quantization['library'].startswith('torchao ')
    (result,) = report.converted
    assert result.runtime == 'torch' and 0.2 < result.agreement < 1
    images = np.random.default_rng(0).normal(size=(3, 3, *SIZE)).astype(np.float32)
    with torch.no_grad():
        expected = torch.export.load(report.path).module()(torch.from_numpy(images)).numpy()
    network = load_runtime(report.path, threads=1)
    for found in (network(images), np.concatenate([network(i[None]) for i in images])):
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    # in another process, which has not quantized anything, the compiler takes its kernels too
    done = subprocess.run(
        [sys.executable, '-c', COUNT, str(report.path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) >= 10
    float32 = export(cfg, checkpoint, tmp_path / 'f.pt2', options=Options(SIZE))
    assert weight_bytes(report.path) < 0.4 * weight_bytes(float32.path)


def weight_bytes(path):
    """Of the weights in a file; the graph itself outweighs those of a tiny network."""
    program = torch.export.load(path)
    return sum(t.numel() * t.element_size() for t in program.state_dict.values())


def test_torchao_is_named_if_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_repvgg.deploy.quantize.torch_pt2e.find_spec', lambda name: None)
    with pytest.raises(RuntimeError, match=r"needs torchao: pip install 'mmseg-repvgg\[int8\]'"):
        quantize_torch(tmp_path / 'm.pt2', tmp_path / 'q.pt2', [], Int8Options())
