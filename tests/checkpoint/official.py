"""RepVGG in the names of the official code, computed straight from the paper's text.

A second implementation for the tests: functions of torch on a state dict, no modules, nothing of
the package. Names and shapes are those of github.com/DingXiaoH/RepVGG (repvgg.py, se_block.py;
repvggplus.py for RepVGGplus-L2pse, with squeeze-excitation after the ReLU to a quarter of the
channels, and stage3 in two halves).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]

# Table 2, layers of stage1..5; D2se and L2pse are described in the README of the official code
A, B, D = (1, 2, 4, 14, 1), (1, 4, 6, 16, 1), (1, 8, 14, 24, 1)
# Table 3, multipliers a and b; section 3.4, groups of the 3rd, 5th, ..., 27th layer
ROWS = {
    'A0': (A, 0.75, 2.5, 1),
    'A1': (A, 1, 2.5, 1),
    'A2': (A, 1.5, 2.75, 1),
    'B0': (B, 1, 2.5, 1),
    'B1': (B, 2, 4, 1),
    'B1g2': (B, 2, 4, 2),
    'B1g4': (B, 2, 4, 4),
    'B2': (B, 2.5, 5, 1),
    'B2g2': (B, 2.5, 5, 2),
    'B2g4': (B, 2.5, 5, 4),
    'B3': (B, 3, 5, 1),
    'B3g2': (B, 3, 5, 2),
    'B3g4': (B, 3, 5, 4),
    'D2se': (D, 2.5, 5, 1),
    'L2pse': (D, 2.5, 5, 1),
}
SQUEEZES = {'D2se': ('se', 16), 'L2pse': ('post_se', 4)}
"""Names and reductions of squeeze-excitation."""


def block_name(arch: str, stage: int, i: int) -> str:
    """The name of a block; stage 0 is the stem."""
    if stage == 0 or arch != 'L2pse':
        return f'stage{stage}.{i}' if stage else 'stage0'
    if stage == 3:
        half = D[3] // 2
        return f'stage3_{"first" if i < half else "second"}.blocks.{i % half}'
    return f'stage{stage}.blocks.{i}'


def random_state(arch: str, seed: int = 0, narrow: int = 1) -> State:
    """Weights of a classifier in training form, of a size that keeps the features near 1.

    Args:
        arch: A name of ROWS.
        seed: Of the numbers.
        narrow: Divides all widths.
    """
    depths, a, b, groups = ROWS[arch]
    a, b = a / narrow, b / narrow
    widths = [min(64, 64 * a), 64 * a, 128 * a, 256 * a, 512 * b]
    generator = torch.Generator().manual_seed(seed)
    state: State = {}

    def draw(name: str, *shape: int) -> None:
        fan_in = max(1, torch.Size(shape[1:]).numel())
        state[name] = torch.randn(shape, generator=generator) / (3 * fan_in) ** 0.5

    squeeze, ratio = SQUEEZES.get(arch, ('', 1))
    gain = 2 if squeeze else 1  # squeeze-excitation halves the features

    def draw_norm(name: str, channels: int) -> None:
        weight, bias, mean, var = torch.rand((4, channels), generator=generator)
        state[f'{name}.weight'], state[f'{name}.bias'] = (
            gain * (1 + weight) / 2,
            gain * (bias - 0.5),
        )
        state[f'{name}.running_mean'], state[f'{name}.running_var'] = mean - 0.5, 0.5 + 1.5 * var
        state[f'{name}.num_batches_tracked'] = torch.tensor(7)

    channels, layer = 3, 0
    for stage, depth in enumerate(depths):
        for i in range(depth):
            layer += 1  # from 1, as the paper counts
            name = block_name(arch, stage, i)
            width = int(widths[stage])
            split = groups if layer % 2 == 1 and 3 <= layer <= 27 else 1
            if width == channels and i > 0:
                draw_norm(f'{name}.rbr_identity', width)
            draw(f'{name}.rbr_dense.conv.weight', width, channels // split, 3, 3)
            draw_norm(f'{name}.rbr_dense.bn', width)
            draw(f'{name}.rbr_1x1.conv.weight', width, channels // split, 1, 1)
            draw_norm(f'{name}.rbr_1x1.bn', width)
            if squeeze:
                for part, rows, columns in (
                    ('down', width // ratio, width),
                    ('up', width, width // ratio),
                ):
                    draw(f'{name}.{squeeze}.{part}.weight', rows, columns, 1, 1)
                    draw(f'{name}.{squeeze}.{part}.bias', rows)
            channels = width
    draw('linear.weight', 1000, channels)
    draw('linear.bias', 1000)
    return state


def blocks(state: State) -> Iterator[tuple[str, State, int]]:
    """Name, weights and stride of every block, in order: each stage's first has stride 2."""
    parts: dict[str, State] = {}
    for key, value in state.items():
        if key.startswith('stage'):
            split = 1 if key.startswith('stage0') else 3 if '.blocks.' in key else 2
            name, rest = '.'.join(key.split('.')[:split]), '.'.join(key.split('.')[split:])
            parts.setdefault(name, {})[rest] = value
    for name, part in parts.items():
        is_first = name.endswith('.0') and not name.startswith('stage3_second')
        yield name, part, 2 if name == 'stage0' or is_first else 1


def norm(x: Tensor, part: State, name: str) -> Tensor:
    """Equation 2."""
    mean, var = part[f'{name}.running_mean'], part[f'{name}.running_var']
    return F.batch_norm(x, mean, var, part[f'{name}.weight'], part[f'{name}.bias'], eps=1e-5)


def block_forward(part: State, x: Tensor, stride: int) -> Tensor:
    """Equation 1, or the one conv, and ReLU; squeeze-excitation before or after it."""
    if 'rbr_reparam.weight' in part:
        kernel, bias = part['rbr_reparam.weight'], part['rbr_reparam.bias']
        y = F.conv2d(x, kernel, bias, stride, 1, groups=x.shape[1] // kernel.shape[1])
    else:
        dense, point = part['rbr_dense.conv.weight'], part['rbr_1x1.conv.weight']
        groups = x.shape[1] // dense.shape[1]
        y = norm(F.conv2d(x, dense, None, stride, 1, groups=groups), part, 'rbr_dense.bn')
        y = y + norm(F.conv2d(x, point, None, stride, groups=groups), part, 'rbr_1x1.bn')
        if 'rbr_identity.weight' in part:
            y = y + norm(x, part, 'rbr_identity')
    return rescaled(part, 'post_se', rescaled(part, 'se', y).relu())


def rescaled(part: State, se: str, y: Tensor) -> Tensor:
    """The channels scaled by squeeze-excitation, if the block has one of this name."""
    if f'{se}.down.weight' not in part:
        return y
    mean = y.mean((2, 3), keepdim=True)
    squeezed = F.conv2d(mean, part[f'{se}.down.weight'], part[f'{se}.down.bias']).relu()
    return y * F.conv2d(squeezed, part[f'{se}.up.weight'], part[f'{se}.up.bias']).sigmoid()


def features(state: State, x: Tensor) -> list[Tensor]:
    """The feature maps after stage2..5 of the paper, for images (N, 3, H, W)."""
    last: dict[str, Tensor] = {}
    for name, part, stride in blocks(state):
        last[name.split('.')[0].split('_')[0]] = x = block_forward(part, x, stride)
    return [last[f'stage{i}'] for i in range(1, 5)]


def fused(state: State) -> State:
    """The same classifier in deployed form."""
    deployed = {key: value for key, value in state.items() if '.rbr_' not in key}
    for name, part, _ in blocks(state):
        kernel, bias = merge(part)
        deployed[f'{name}.rbr_reparam.weight'] = kernel.float()
        deployed[f'{name}.rbr_reparam.bias'] = bias.float()
    return deployed


def merge(part: State) -> tuple[Tensor, Tensor]:
    """Equations 3 and 4: a block's branches as one kernel and bias, float64."""
    scales, bias = {}, torch.zeros(1, dtype=torch.float64)
    for name in ('rbr_dense.bn', 'rbr_1x1.bn', 'rbr_identity'):
        if f'{name}.weight' in part:
            sigma = (part[f'{name}.running_var'].double() + 1e-5) ** 0.5
            scales[name] = part[f'{name}.weight'] / sigma
            bias = bias + part[f'{name}.bias'] - part[f'{name}.running_mean'] * scales[name]
    dense, point = part['rbr_dense.conv.weight'], part['rbr_1x1.conv.weight']
    kernel = torch.einsum('o,oihw->oihw', scales['rbr_dense.bn'], dense.double())
    kernel[:, :, 1, 1] += scales['rbr_1x1.bn'][:, None] * point[:, :, 0, 0]
    if 'rbr_identity' in scales:  # a 1x1 conv with the identity matrix, of each group its part
        row = torch.arange(len(kernel))
        kernel[row, row % kernel.shape[1], 1, 1] += scales['rbr_identity']
    return kernel, bias
