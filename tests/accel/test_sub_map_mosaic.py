"""Dilated runs on one map of all sub-maps equal the dilated convs."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmseg_repvgg.accel import sub_map_mosaic
from mmseg_repvgg.accel.sub_map_mosaic import from_mosaic, run_on_mosaic, to_mosaic
from mmseg_repvgg.reparam.dilation import to_sub_maps


def test_a_mosaic_by_hand():
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    assert to_mosaic(x, 2)[0, 0].tolist() == [
        [1, 3, 0, 2, 0, 0],
        [7, 9, 0, 8, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [4, 6, 0, 5, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0],
    ]


@pytest.mark.parametrize(('step', 'size'), [(2, (7, 10)), (3, (9, 11)), (4, (5, 4)), (4, (1, 2))])
def test_a_mosaic_holds_the_sub_maps(step, size):
    x = torch.randn(2, 3, *size)
    mosaic, maps = to_mosaic(x, step), to_sub_maps(x, step).unflatten(0, (step, step, 2))
    h, w = maps.shape[-2:]
    for i in range(step):
        for j in range(step):
            rows, columns = slice(i * (h + 1), i * (h + 1) + h), slice(j * (w + 1), None)
            assert torch.equal(mosaic[:, :, rows, columns][..., :w], maps[i, j])
    assert torch.equal(from_mosaic(mosaic, step, size), x)
    assert from_mosaic(to_mosaic(x[:0], step), step, size).shape == (0, 3, *size)


@pytest.mark.parametrize('size', [(9, 9), (8, 8), (7, 12), (3, 2)])
@pytest.mark.parametrize('step', [2, 3, 4])
def test_a_run_on_a_mosaic_equals_the_dilated_run(monkeypatch, size, step):
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, 3, padding=1).double().requires_grad_(False) for _ in range(3)]
    layers = [nn.Sequential(conv, nn.ReLU()) for conv in convs]
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    given, expected = x.clone(), x
    for conv in convs:
        expected = F.conv2d(expected, conv.weight, conv.bias, 1, step, step).relu()
    assert (run_on_mosaic(layers, x, step) - expected).abs().max() < 1e-12
    assert torch.equal(x, given)
    # negative control: without the zeros between the sub-maps it is another network
    monkeypatch.setattr(sub_map_mosaic, 'clear_gaps', lambda *_: None)
    assert (run_on_mosaic(layers, x, step) - expected).abs().max() > 1e-3
