"""The paper's Tables 2 to 5, as far as they need no GPU, from the built models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn

from mmseg_repvgg.analysis.complexity import Complexity, count
from mmseg_repvgg.markdown import markdown_table
from mmseg_repvgg.models.arch import ARCHS
from mmseg_repvgg.models.backbone import DilatedRepVGG


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 4 or 5: what the paper prints, and the model."""

    table: int
    accuracy: float  # top-1 on ImageNet, percent
    speed: float  # images a second on a 1080Ti, batch 128, fp32
    params: float  # millions, truncated to two decimals; only EfficientNet-B3's is rounded
    flops: float  # billions of multiply-adds
    wino_muls: float | None  # billions; the paper prints none for EfficientNet
    backbone: dict[str, Any] | None = None  # of mmpretrain; None: RepVGG
    channels: int = 0  # inputs of the classifier; 0: the backbone has its own
    size: int = 224
    note: str = ''  # why a figure differs


def _resnet(depth: int) -> dict[str, Any]:
    # the stride in the first 1x1 conv, as in the original; torchvision's has it in the 3x3
    return dict(type='ResNet', depth=depth, style='caffe' if depth >= 50 else 'pytorch')


def _resnext(depth: int) -> dict[str, Any]:
    return dict(type='ResNeXt', depth=depth, groups=32, width_per_group=4)


_ROUNDED = 'the parameters of this row are rounded, those of the others truncated'
_RESNEXT = 'some of its groupwise convs were seen to be accelerated; here none of 32 groups is'

PAPER_ROWS: dict[str, PaperRow] = {
    'RepVGG-A0': PaperRow(4, 72.41, 3256, 8.30, 1.4, 0.7),
    'ResNet-18': PaperRow(4, 71.16, 2442, 11.68, 1.8, 1.0, _resnet(18), 512),
    'RepVGG-A1': PaperRow(4, 74.46, 2339, 12.78, 2.4, 1.3),
    'RepVGG-B0': PaperRow(4, 75.14, 1817, 14.33, 3.1, 1.6),
    'ResNet-34': PaperRow(4, 74.17, 1419, 21.78, 3.7, 1.8, _resnet(34), 512),
    'RepVGG-A2': PaperRow(4, 76.48, 1322, 25.49, 5.1, 2.7),
    'RepVGG-B1g4': PaperRow(4, 77.58, 868, 36.12, 7.3, 3.9),
    'EfficientNet-B0': PaperRow(
        4, 75.11, 829, 5.26, 0.4, None, dict(type='EfficientNet', arch='b0'), 1280
    ),
    'RepVGG-B1g2': PaperRow(4, 77.78, 792, 41.36, 8.8, 4.6),
    'ResNet-50': PaperRow(4, 76.31, 719, 25.53, 3.9, 2.8, _resnet(50), 2048),
    'RepVGG-B1': PaperRow(4, 78.37, 685, 51.82, 11.8, 5.9),
    'RegNetX-3.2GF': PaperRow(
        4, 77.98, 671, 15.26, 3.2, 2.9, dict(type='RegNet', arch='regnetx_3.2gf'), 1008
    ),
    'RepVGG-B2g4': PaperRow(4, 78.50, 581, 55.77, 11.3, 6.0),
    'ResNeXt-50': PaperRow(4, 77.46, 484, 24.99, 4.2, 4.1, _resnext(50), 2048, note=_RESNEXT),
    'RepVGG-B2': PaperRow(4, 78.78, 460, 80.31, 18.4, 9.1),
    'ResNet-101': PaperRow(4, 77.21, 430, 44.49, 7.6, 5.5, _resnet(101), 2048),
    'VGG-16': PaperRow(
        4, 72.21, 415, 138.35, 15.5, 6.9, dict(type='VGG', depth=16, num_classes=1000)
    ),
    'ResNet-152': PaperRow(4, 77.78, 297, 60.11, 11.3, 8.1, _resnet(152), 2048),
    'ResNeXt-101': PaperRow(4, 78.42, 295, 44.10, 8.0, 7.9, _resnext(101), 2048, note=_RESNEXT),
    'RepVGG-B3g4': PaperRow(5, 80.21, 464, 75.62, 16.1, 8.4),
    'RepVGG-B3': PaperRow(5, 80.52, 363, 110.96, 26.2, 12.9),
    'RegNetX-12GF': PaperRow(
        5, 80.55, 277, 46.05, 12.1, 10.9, dict(type='RegNet', arch='regnetx_12gf'), 2240
    ),
    'EfficientNet-B3': PaperRow(
        5, 79.31, 224, 12.19, 1.8, None, dict(type='EfficientNet', arch='b3'), 1536, 300, _ROUNDED
    ),
}
"""In the paper's order; RepVGG-B2g4 is in both tables."""


class Classifier(nn.Module):
    """A backbone, global average pooling and one linear layer to 1000 classes."""

    def __init__(self, backbone: nn.Module, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels, 1000) if channels else None

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, 1000)."""
        features = self.backbone(x)
        last = features[-1] if isinstance(features, (tuple, list)) else features
        return last if self.head is None else self.head(last.mean((2, 3)))


def build(name: str, deploy: bool = True) -> nn.Module:
    """Build the model of a row.

    Args:
        name: Key of :data:`PAPER_ROWS`.
        deploy: Build RepVGG in deployed form on the meta device, not in training form with weights.

    Raises:
        KeyError: If there is no such row.
    """
    row = PAPER_ROWS[name]
    if row.backbone is None:
        with torch.device('meta' if deploy else 'cpu'):
            backbone = DilatedRepVGG(name.removeprefix('RepVGG-'), deploy=deploy)
            return Classifier(backbone, backbone.out_channels[-1])
    import mmpretrain.models  # noqa: F401 (registers)
    from mmpretrain.registry import MODELS

    init_default_scope('mmpretrain')
    return Classifier(MODELS.build(dict(row.backbone)), row.channels)


def measure(name: str) -> Complexity:
    """Count the model of a row at the row's image size."""
    size = PAPER_ROWS[name].size
    return count(build(name), (size, size))


def differences(row: PaperRow, found: Complexity) -> dict[str, float]:
    """Our figures, at the paper's decimals, minus the paper's."""
    ours = {
        'params': math.floor(found.params / 1e4) / 100,
        'flops': round(found.flops / 1e9, 1),
        'wino_muls': round(found.wino_muls / 1e9, 1),
    }
    paper = {'params': row.params, 'flops': row.flops, 'wino_muls': row.wino_muls}
    return {key: round(ours[key] - value, 2) for key, value in paper.items() if value is not None}


def table_2_and_3() -> str:
    """Layers and widths of every stage, read from the built models."""
    rows = []
    for name, arch in ARCHS.items():
        with torch.device('meta'):
            model = DilatedRepVGG(name)
        stages: list[list[Any]] = [[model.stem], *[list(stage) for stage in model.stages]]
        blocks = [block for stage in stages for block in stage]
        groupwise = [i + 1 for i, block in enumerate(blocks) if block.groups > 1]
        layers = ', '.join(str(len(stage)) for stage in stages)
        widths = ', '.join(str(stage[-1].branch_3x3.conv.out_channels) for stage in stages)
        which = f'{groupwise[0]}, {groupwise[1]}, ..., {groupwise[-1]}' if groupwise else None
        rows.append([f'RepVGG-{name}', layers, widths, which, arch.source])
    return markdown_table(
        ['model', 'layers of stage1..5', 'widths of stage1..5', 'groupwise layers', 'source'], rows
    )


def table_4_and_5() -> str:
    """Parameters, FLOPs and Winograd MULs of every row, next to the paper's."""
    rows = []
    for name, row in PAPER_ROWS.items():
        found = measure(name)
        notes = [f'{key} {gap:+g}' for key, gap in differences(row, found).items() if gap]
        note = '; '.join(filter(None, [*notes, row.note])) or 'equal'
        rows.append(
            [
                row.table, name, f'{found.params / 1e6:.3f}', f'{row.params:.2f}',
                f'{found.flops / 1e9:.3f}', row.flops, f'{found.wino_muls / 1e9:.3f}',
                row.wino_muls, note,
            ]
        )  # fmt: skip
    return markdown_table(
        ['table', 'model', 'params (M)', 'paper', 'FLOPs (B)', 'paper', 'MULs (B)', 'paper',
         'note'], rows,
    )  # fmt: skip
