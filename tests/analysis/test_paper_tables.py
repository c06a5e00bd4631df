"""The counting, by hand and against the paper's printed figures."""

import pytest
import torch
from torch import nn

from mmseg_repvgg.analysis.complexity import count
from mmseg_repvgg.analysis.paper_tables import (
    PAPER_ROWS,
    differences,
    measure,
    table_2_and_3,
)

REPVGG = [name for name in PAPER_ROWS if name.startswith('RepVGG')]
BASELINES = [name for name in PAPER_ROWS if name not in REPVGG]


def test_two_layers_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),  # 8 x 5 x 5, 27 inputs
        nn.BatchNorm2d(8),
        nn.Conv2d(8, 4, 3, padding=1, groups=2),  # 4 x 5 x 5, 36 inputs, Winograd
        nn.Conv2d(4, 4, 3, padding=1, groups=4, dilation=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    found = count(model, (10, 10))
    assert found.params == (8 * 27 + 8) + (4 * 36 + 4) + (4 * 9 + 4) + (2 * 4 + 2)
    stem, rest, fc = 200 * 27, 100 * 36 + 100 * 9, 8
    assert found.flops == stem + rest + fc
    assert found.wino_muls == pytest.approx(stem + rest * 4 / 9 + fc)
    assert model.training
    assert not any(m._forward_hooks for m in model)


@pytest.mark.parametrize('name', REPVGG)
def test_every_repvgg_row_equals_the_paper_to_its_decimals(name):
    assert differences(PAPER_ROWS[name], measure(name)) == dict(params=0, flops=0, wino_muls=0)


# building them on the CPU takes a second each: the large ones with the slow tests
QUICK = ['ResNet-18', 'ResNet-50', 'ResNeXt-50', 'RegNetX-3.2GF', 'EfficientNet-B0']


@pytest.mark.parametrize(
    'name', [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BASELINES]
)
def test_every_baseline_equals_the_paper_or_says_why_not(name):
    row = PAPER_ROWS[name]
    gaps = {key: gap for key, gap in differences(row, measure(name)).items() if gap}
    if row.note:  # one unit in the last place
        assert gaps in ({'wino_muls': 0.1}, {'params': -0.01})
    else:
        assert not gaps


def test_a_wrong_network_is_seen(monkeypatch):
    """Negative control: B1 is not B1g2, and torchvision's ResNet-50 not the paper's."""
    gaps = differences(PAPER_ROWS['RepVGG-B1g2'], measure('RepVGG-B1'))
    assert gaps == dict(params=10.46, flops=3.0, wino_muls=1.3)
    torchvision = pytest.importorskip('torchvision')
    with torch.device('meta'):
        gaps = differences(PAPER_ROWS['ResNet-50'], count(torchvision.models.resnet50()))
    assert gaps == dict(params=0, flops=0.2, wino_muls=0.5)


def test_tables_2_and_3_are_read_off_the_models():
    lines = table_2_and_3().splitlines()
    assert len(lines) == 2 + 15  # 13 of the paper, D2se and L2pse
    assert lines[2] == '| RepVGG-A0 | 1, 2, 4, 14, 1 | 48, 48, 96, 192, 1280 | - | paper, Table 3 |'
    (b1g4,) = [line for line in lines if 'B1g4' in line]
    assert '| 1, 4, 6, 16, 1 | 64, 128, 256, 512, 2048 | 3, 5, ..., 27 |' in b1g4
