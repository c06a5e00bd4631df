"""Dilated convs on sub-maps equal the dilated convs, for every size and pattern."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim

from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.reparam import compare
from mmseg_repvgg.reparam.dilation import (
    SubMapConv2d,
    SubMapSequential,
    from_sub_maps,
    run_on_sub_maps,
    to_sub_maps,
    undilate,
)
from mmseg_repvgg.reparam.rewrites import deployed_copy
from tests.common import TINY, randomise_batchnorms

EXACT = 1e-12  # float64


def fused_run(dilations, channels: int = 4, groups: int = 1, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    blocks = [RepVGGBlock(channels, channels, dilation=d, groups=groups) for d in dilations]
    run = randomise_batchnorms(nn.Sequential(*blocks), seed).double()
    for block in run:
        block.switch_to_deploy()
    return run


def undilated(model: nn.Module) -> tuple[nn.Module, int]:
    holder = nn.ModuleDict(dict(model=copy.deepcopy(model)))
    count = undilate(holder)
    return holder['model'], count


def test_sub_maps_by_hand() -> None:
    # rows and columns 0, 2 | 1, 3: the four sub-maps of dilation 2
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    expected = [[[0, 2], [8, 10]], [[1, 3], [9, 11]], [[4, 6], [12, 14]], [[5, 7], [13, 15]]]
    assert to_sub_maps(x, 2)[:, 0].tolist() == expected
    # 3 x 3: the fourth row and column are padding
    x = torch.arange(1.0, 10.0).reshape(1, 1, 3, 3)
    expected = [[[1, 3], [7, 9]], [[2, 0], [8, 0]], [[4, 6], [0, 0]], [[5, 0], [0, 0]]]
    assert to_sub_maps(x, 2)[:, 0].tolist() == expected


def test_sub_maps_of_a_batch_lie_in_the_documented_order() -> None:
    x = torch.randn(3, 5, 7, 10)
    maps = to_sub_maps(x, 3).unflatten(0, (3, 3, 3))
    for i in range(3):
        for j in range(3):
            expected = x[:, :, i::3, j::3]
            height, width = expected.shape[2:]
            assert torch.equal(maps[i, j, :, :, :height, :width], expected)
            assert maps[i, j].abs().sum().item() == pytest.approx(expected.abs().sum().item())
    assert torch.equal(from_sub_maps(to_sub_maps(x, 3), 3, (7, 10)), x)


@pytest.mark.parametrize('size', [(12, 12), (97, 97), (81, 129), (7, 9), (3, 2), (1, 1)])
@pytest.mark.parametrize(
    ('dilations', 'groups', 'rewritten'),
    [
        ((2, 2, 2, 4), 1, 4),
        ((1, 2, 2, 1, 3, 3), 1, 4),
        ((4, 4), 2, 2),
        ((1, 1, 2), 1, 1),
    ],
)
def test_run_equals_dilated(size, dilations, groups, rewritten) -> None:
    run = fused_run(dilations, groups=groups)
    after, count = undilated(run)
    assert count == rewritten
    assert all(m.dilation == (1, 1) for m in after.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(after(x), run(x), rtol=0, atol=EXACT)


def test_without_the_border_it_is_wrong() -> None:
    """Negative control: bias and ReLU fill the padding, which the next layer must not see."""
    run = fused_run((2, 2))
    x = torch.randn(1, 4, 9, 9, dtype=torch.float64)

    def without_border(layers, x, step):
        size, maps = x.shape[2:], to_sub_maps(x, step)
        for layer in layers:
            maps = layer(maps)
        return from_sub_maps(maps, step, size)

    after, _ = undilated(run)
    assert (after(x) - run(x)).abs().max() < EXACT
    after.run = without_border
    gap = (after(x) - run(x)).abs()
    assert gap[..., :-3, :-3].max() < EXACT  # the border is two pixels of dilation 2, less one
    assert gap.max() > 1e-3
    even = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(after(even), run(even), rtol=0, atol=EXACT)


def test_parameter_names_and_tensors_stay() -> None:
    run = fused_run((1, 2, 2, 4))
    before = run.state_dict()
    after, _ = undilated(run)
    assert isinstance(after, SubMapSequential)
    assert list(after.state_dict()) == list(before)
    assert all(torch.equal(after.state_dict()[name], before[name]) for name in before)
    assert not after.training


class ConvThenActivation(nn.Module):
    """A dilated conv and an activation in place, as in a ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=4, dilation=4, dtype=torch.float64)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.conv(x))


@pytest.mark.parametrize('model', [fused_run((1, 4)), ConvThenActivation()])
def test_activation_in_place_is_exported_without_a_scatter(model) -> None:
    """On a view of what is cut off it would be one, which runtimes compute slowly."""
    after, count = undilated(model)
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    program = torch.export.export(after, (x,)).run_decompositions({})
    assert count == 1
    torch.testing.assert_close(program.module()(x), model(x), rtol=0, atol=EXACT)
    assert not [node for node in program.graph.nodes if 'scatter' in str(node.target)]


def test_twice_is_once() -> None:
    run = fused_run((2, 2, 4))
    after, count = undilated(run)
    again, more = undilated(after)
    assert (count, more) == (3, 0)
    x = torch.randn(1, 4, 11, 13, dtype=torch.float64)
    assert torch.equal(again(x), after(x))


@settings(max_examples=40)
@given(
    dilations=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    groups=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 23), st.integers(1, 23)),
    seed=st.integers(0, 10),
)
def test_any_pattern_and_size(dilations, groups, batch, size, seed) -> None:
    run = fused_run(dilations, groups=groups, seed=seed)
    after, count = undilated(run)
    assert count == sum(d > 1 for d in dilations)
    x = torch.randn(batch, 4, *size, dtype=torch.float64)
    torch.testing.assert_close(after(x), run(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize('kernel', [3, 5])
def test_lone_conv(kernel) -> None:
    conv = nn.Conv2d(
        4, 6, kernel, dilation=3, padding=3 * (kernel - 1) // 2, groups=2, dtype=torch.float64
    )
    after, count = undilated(conv)
    assert (count, type(after)) == (1, SubMapConv2d)
    assert list(after.state_dict()) == ['weight', 'bias']
    x = torch.randn(2, 4, 10, 17, dtype=torch.float64)
    torch.testing.assert_close(after(x), conv(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    'conv',
    [
        nn.Conv2d(2, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2, stride=2),
        nn.Conv2d(2, 2, 3, padding=0, dilation=2),
        nn.Conv2d(2, 2, 3, padding=(2, 1), dilation=(2, 1)),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2, padding_mode='reflect'),
        nn.Conv2d(2, 2, 2, padding=1, dilation=2),  # its taps lie beside the pixel
        nn.Conv2d(2, 2, 4, padding=3, dilation=2),
    ],
    ids=['ordinary', 'stride', 'no padding', 'not square', 'reflect', 'even', 'even 4'],
)
def test_others_are_left(conv) -> None:
    after, count = undilated(conv)
    assert count == 0
    assert type(after) is nn.Conv2d
    x = torch.randn(1, 2, 9, 9)
    assert torch.equal(after(x), conv(x))


class Taken(nn.Module):
    """A backbone whose parts are registered once more, before or after it, and run from there."""

    def __init__(self, part: str, first: bool, by_parts: bool) -> None:
        super().__init__()
        backbone = DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
        stages = backbone.stages
        parts = dict(stages=stages, blocks=[block for stage in stages for block in stage])[part]
        children = dict(backbone=backbone, parts=nn.ModuleList([backbone.stem, *parts]))
        for name in sorted(children, reverse=first):
            self.add_module(name, children[name])
        self.by_parts = by_parts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.by_parts:
            return self.backbone(x)[-1]
        for part in self.parts:
            x = part(x)
        return x


@pytest.mark.parametrize('part', ['stages', 'blocks'])
@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('by_parts', [True, False])
def test_parts_that_are_registered_twice(part, first, by_parts) -> None:
    model = randomise_batchnorms(Taken(part, first, by_parts))
    after, counts = deployed_copy(model, ['branches', 'dilation'])
    assert counts['dilation'] == 4
    assert compare(model, after, torch.randn(1, 3, 97, 97)).max_rel < 1e-5


def test_a_block_that_is_used_twice_in_a_run() -> None:
    block = fused_run((2,))[0]
    run = nn.Sequential(block, block)
    after, count = undilated(run)
    assert count == 1
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(after(x), run(x), rtol=0, atol=EXACT)
    torch.testing.assert_close(after[0](x), block(x), rtol=0, atol=EXACT)
    torch.testing.assert_close(after[:1](x), block(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize('when', ['before', 'after'])
def test_hooks_see_whole_maps(when) -> None:
    run = fused_run((1, 2, 2, 2))
    shapes = {}

    def add_hooks(model: nn.Sequential) -> None:
        for name in ('', '1', '2.branch_reparam', '2.act'):
            model.get_submodule(name).register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: output.shape})
            )

    if when == 'before':
        add_hooks(run)
    after, count = undilated(run)
    if when == 'after':
        add_hooks(after)
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    shapes.clear()
    found = after(x)
    assert count == 3
    assert set(shapes) == {'', '1', '2.branch_reparam', '2.act'}
    assert set(shapes.values()) == {x.shape}
    torch.testing.assert_close(found, run(x), rtol=0, atol=EXACT)


def test_a_patched_conv_is_left() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=2, dilation=2)
    plain = conv.forward
    conv.forward = lambda x: 2 * plain(x)
    assert undilate(conv) == 0


class OwnSequential(nn.Sequential):
    """Has a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


def test_another_sequence_keeps_its_class() -> None:
    run = OwnSequential(*fused_run((2, 2)))
    after, count = undilated(run)
    assert (count, type(after)) == (2, OwnSequential)
    x = torch.randn(1, 4, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(after(x), run(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize('size', [(0, 4, 9, 9), (4, 9, 11)], ids=['batch 0', 'unbatched'])
def test_empty_batches_and_single_maps(size) -> None:
    x = torch.randn(size, dtype=torch.float64)
    for model in (fused_run((2, 2)), nn.Conv2d(4, 6, 3, padding=3, dilation=3).double()):
        after, _ = undilated(model)
        torch.testing.assert_close(after(x), model(x), rtol=0, atol=EXACT)


def test_channels_last_stays() -> None:
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64).to(memory_format=torch.channels_last)
    for model in (fused_run((2, 2)), nn.Conv2d(4, 6, 3, padding=3, dilation=3).double()):
        model = model.to(memory_format=torch.channels_last)
        after, _ = undilated(model)
        assert after(x).is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(after(x), model(x), rtol=0, atol=EXACT)


@pytest.mark.slow
def test_it_compiles_without_a_break() -> None:
    after, _ = undilated(fused_run((1, 2, 2)))
    compiled = torch.compile(after, fullgraph=True, backend='aot_eager')
    for size in ((8, 8), (9, 11)):
        x = torch.randn(1, 4, *size, dtype=torch.float64)
        torch.testing.assert_close(compiled(x), after(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize('size', [(8, 8), (9, 11)], ids=['no padding', 'padding'])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'unbatched'])
def test_torch_fx_traces_one_graph_for_every_size_and_layout(size, layout) -> None:
    lone = nn.Sequential(nn.Conv2d(4, 4, 3, padding=3, dilation=3).double())
    for model in (fused_run((1, 2, 2, 4)), lone):
        after, _ = undilated(model)
        graph = torch.fx.symbolic_trace(after)
        x = torch.randn(2, 4, *size, dtype=torch.float64)
        if layout == 'channels_last':
            model, graph, x = (t.to(memory_format=torch.channels_last) for t in (model, graph, x))
        elif layout == 'unbatched':
            x = x[0]
        found = graph(x)
        torch.testing.assert_close(found, model(x), rtol=0, atol=EXACT)
        if layout == 'channels_last':
            assert found.is_contiguous(memory_format=torch.channels_last)


def test_squeeze_excitation_ends_a_run() -> None:
    """It averages over the whole map, so that it cannot run on sub-maps."""
    torch.manual_seed(0)
    blocks = [RepVGGBlock(4, 4, dilation=2, se_cfg=dict(ratio=2, divisor=1)) for _ in range(2)]
    run = randomise_batchnorms(nn.Sequential(*blocks)).double()
    for block in run:
        block.switch_to_deploy()
    after, count = undilated(run)
    assert (count, type(after)) == (2, nn.Sequential)
    x = torch.randn(2, 4, 9, 11, dtype=torch.float64)
    torch.testing.assert_close(after(x), run(x), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    ('dilations', 'count'),
    [((1, 1, 2, 4), 4), ((1, 1, (1, 1, 2), 4), 2), ((1, (1, 2, 1), (3, 3, 2), (6,)), 5)],
    ids=['full', 'fast', 'per layer'],
)
@pytest.mark.parametrize('size', [(97, 129), (64, 64)])
def test_backbone(dilations, count, size) -> None:
    backbone = DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=dilations)
    randomise_batchnorms(backbone)
    after, counts = deployed_copy(backbone, ['branches', 'dilation'])
    assert counts['dilation'] == count
    images = torch.randn(2, 3, *size)
    assert compare(backbone, after, images).max_rel < 1e-5


def test_of_a_tensor_that_needs_no_border_nothing_is_multiplied() -> None:
    """The mask costs a pass over the map, so it is left out where the dilation divides the size."""
    seen = []

    def layer(x):
        seen.append(x)
        return F.pad(x, (0, 0)) + 1

    x = torch.zeros(1, 1, 4, 4)
    assert run_on_sub_maps([layer, layer], x, 2).unique().tolist() == [2]
    assert seen[1].unique().tolist() == [1]
    seen.clear()
    run_on_sub_maps([layer, layer], torch.zeros(1, 1, 3, 3), 2)
    assert seen[1].unique().tolist() == [0, 1]


def test_a_graph_for_all_sizes_keeps_the_dilated_convs() -> None:
    before = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=2, dilation=2, groups=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, (3, 1), padding=(3, 0), dilation=3, groups=2),
    ).double()
    after = copy.deepcopy(before)
    assert undilate(after) == 2
    sides = {0: Dim('batch', min=1), 2: Dim('height', min=4), 3: Dim('width', min=4)}
    x = torch.randn(2, 3, 10, 14, dtype=torch.float64)
    program = torch.export.export(after, (x,), dynamic_shapes=(sides,), strict=False)
    for size in ((4, 5), (13, 17), (31, 6)):
        x = torch.randn(1, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(program.module()(x), before(x), rtol=0, atol=1e-12)
    convs = [node for node in program.graph.nodes if 'conv2d' in str(node.target)]
    assert [list(node.args[5]) for node in convs] == [[2, 2], [3, 3]]
    with torch.no_grad():  # negative control
        before[0].weight.neg_()
    assert (program.module()(x) - before(x)).abs().max() > 1e-3
