"""The time and memory of training: our block and backbone compared with mmpretrain's.

The first step after a pause, in which another model ran, takes up to twice as long as the next
ones; the blocks of a second that :class:`Protocol` times hold many steps in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.analysis.live_bytes import LiveBytes
from mmseg_repvgg.benchmark.candidate import Built, Candidate
from mmseg_repvgg.benchmark.page import bars, number, percent, row_table
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.models.backbone import DilatedRepVGG
from mmseg_repvgg.models.block import RepVGGBlock

TITLE = "Training a block compared with mmpretrain's"
THEIRS = 'mmpretrain'
KINDS: dict[str, bool | None] = {THEIRS: None, 'ours': False, 'recompute_1x1': True}
"""``recompute_1x1`` by kind; mmpretrain has no such option."""

BLOCKS: dict[str, dict[str, Any]] = {
    'A0, 1/4': dict(channels=48, size=56, batch=8),
    'A0, 1/8': dict(channels=96, size=28, batch=8),
    'A0, 1/8, dilation 2': dict(channels=192, size=28, batch=4, dilation=2),
    'A0, 1/16': dict(channels=192, size=14, batch=8),
    'A0, 1/4, stride 2': dict(channels=48, out_channels=96, size=56, batch=8, stride=2),
    'B1, 1/4': dict(channels=128, size=56, batch=4),
    'B1, 1/8': dict(channels=256, size=28, batch=4),
    'B1g2, 1/8': dict(channels=256, size=28, batch=4, groups=2),
    'B1, 1/16': dict(channels=512, size=14, batch=8),
    'B1, 1/8, dilation 2': dict(channels=512, size=28, batch=4, dilation=2),
}
"""Layers of the backbones: channels, height and width of the map, and geometry."""

BACKBONES: dict[str, dict[str, Any]] = {
    'backbone A0, 224x224': dict(arch='A0', size=224, batch=4),
    'backbone A0, 224x224, output stride 8': dict(
        arch='A0', size=224, batch=4, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)
    ),
    'backbone B1g2, 224x224': dict(arch='B1g2', size=224, batch=4),
}


def kept_bytes(module: nn.Module, x: Tensor) -> tuple[int, Any]:
    """Bytes that a forward pass keeps for the backward pass, and its output.

    Every live tensor counts, because autograd's hooks on saved tensors may not see all of them. The
    output counts too: the next layer keeps it. ``x``, parameters and buffers do not count.

    Args:
        module: In training mode.
        x: Its input.
    """
    with LiveBytes([x, *module.parameters(), *module.buffers()]) as live:
        before = live.now
        out = module(x)
        return live.now - before, out


def block(
    kind: str,
    channels: int,
    size: int,
    batch: int,
    out_channels: int | None = None,
    dilation: int = 1,
    **geometry: Any,
) -> Built:
    """A training step of one block of a kind on an input of (batch, channels, size, size)."""
    torch.manual_seed(0)
    x = torch.randn(batch, channels, size, size).relu()
    geometry |= dict(in_channels=channels, out_channels=out_channels or channels, dilation=dilation)
    if kind == THEIRS:
        from mmpretrain.models.backbones import repvgg

        module: nn.Module = repvgg.RepVGGBlock(padding=dilation, **geometry)
    else:
        module = RepVGGBlock(recompute_1x1=bool(KINDS[kind]), **geometry)
    return _training_step(module, x.requires_grad_())


def backbone(kind: str, arch: str, size: int, batch: int, **settings: Any) -> Built:
    """A training step of a backbone on (batch, 3, size, size), with its strides and dilations."""
    torch.manual_seed(0)
    if kind == THEIRS:
        from mmpretrain.models.backbones import repvgg

        module: nn.Module = repvgg.RepVGG(arch, out_indices=(0, 1, 2, 3), **settings)
    else:
        module = DilatedRepVGG(arch, recompute_1x1=bool(KINDS[kind]), **settings)
    return _training_step(module, torch.randn(batch, 3, size, size))


def _training_step(module: nn.Module, x: Tensor) -> Built:
    """Forward, backward from random gradients of the outputs, SGD."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    module.train()  # mmpretrain's returns None
    module.to(device)
    x = x.detach().to(device).requires_grad_(x.requires_grad)
    kept, outs = kept_bytes(module, x)
    gradients = [torch.randn_like(out) for out in _as_list(outs)]
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9)

    def call() -> None:
        x.grad = None
        optimizer.zero_grad()
        torch.autograd.backward(_as_list(module(x)), gradients)
        optimizer.step()
        if device == 'cuda':
            torch.cuda.synchronize()

    return Built(call, info=dict(kept_bytes=kept))


def _as_list(outs: Any) -> list[Tensor]:
    return [outs] if isinstance(outs, Tensor) else list(outs)


def groups(runtimes: Sequence[str], quick: bool) -> dict[str, list[Candidate]]:
    """A group per layer and per backbone, in PyTorch: no other runtime trains."""
    things = [(name, 'block', settings) for name, settings in BLOCKS.items()]
    things += [(name, 'backbone', settings) for name, settings in BACKBONES.items()]
    if quick:
        things = [
            (name, builder, dict(settings, batch=2, size=64 if builder == 'backbone' else 14))
            for name, builder, settings in things[::10]
        ]
    return {
        name: [
            Candidate(
                kind,
                f'{__name__}:{builder}',
                dict(kind=kind, **settings),
                settings['batch'],
                spins=True,  # as in training, which runs hundreds of small operations
            )
            for kind in KINDS
        ]
        for name, builder, settings in things
    }


def kept_share(record: Record, name: str, group: str) -> float | None:
    """Bytes kept relative to mmpretrain's."""
    row, base = record.row(name, group), record.row(THEIRS, group)
    return row.info['kept_bytes'] / base.info['kept_bytes'] if row and base else None


def markdown(record: Record) -> str:
    """A row per layer and kind."""
    return row_table(
        ['layer', 'block', 'ms a step', 'spread', 'mmpretrain = 1', 'MiB kept', 'mmpretrain = 1'],
        record.rows,
        lambda row: [row.group, row.name],
        lambda row: [
            f'{1e3 * row.median:.1f}',
            percent(row.spread),
            record.ratio(THEIRS, row.name, row.group),  # of times, not of speeds
            f'{row.info["kept_bytes"] / 2**20:.2f}',
            number(kept_share(record, row.name, row.group), 3),
        ],
    )


def plot(record: Record, path: Path) -> None:
    """Time and memory of our block relative to mmpretrain's."""
    groups = list(record.groups)
    ours = [kind for kind in KINDS if kind != THEIRS]
    series = {
        f'time of a step, {kind}': [record.speed(THEIRS, kind, group) for group in groups]
        for kind in ours
    }
    series |= {
        f'bytes kept, {kind}': [kept_share(record, kind, group) for group in groups]
        for kind in ours
    }
    bars(path, groups, series, 'mmpretrain = 1', 'Training a RepVGG block')
