"""Heads with a linearized pyramid equal mmseg's, for every size, scale and alignment."""

import copy
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from mmseg_repvgg.reparam import pyramid
from mmseg_repvgg.reparam.batchnorm import fuse_batchnorms
from mmseg_repvgg.reparam.pyramid import (
    linearize_pyramids,
    pooling_matrix,
    shifted_by_taps,
    upsampling_matrix,
)
from mmseg_repvgg.reparam.rewrites import deployed_copy
from tests.common import randomise_batchnorms

EXACT = 1e-12


def make_head(scales=(1, 2, 3, 6), align_corners=True, kind='PSPHead', **changes) -> nn.Module:
    init_default_scope('mmseg')
    many = kind == 'UPerHead'
    cfg = dict(
        type=kind,
        in_channels=[5, 7] if many else 7,
        in_index=[0, 1] if many else 0,
        channels=6,
        num_classes=4,
        pool_scales=scales,
        norm_cfg=dict(type='BN'),
        align_corners=align_corners,
    )
    torch.manual_seed(0)
    return randomise_batchnorms(MODELS.build(dict(cfg, **changes))).double()


def linearized(head: nn.Module) -> nn.Module:
    after = copy.deepcopy(head)
    assert linearize_pyramids(after) == 1
    return after


def test_matrices_by_hand() -> None:
    # 5 pixels to 2: windows 0..2 and 2..4 (torch: floor(i n / b) to ceil((i + 1) n / b))
    third = 1 / 3
    expected = [[third, third, third, 0, 0], [0, 0, third, third, third]]
    torch.testing.assert_close(pooling_matrix(5, 2), torch.tensor(expected, dtype=torch.float64))
    # 2 values to 3 pixels: corners on corners, or pixel centres at -1/6, 1/2, 7/6
    corners = torch.tensor([[1, 0], [0.5, 0.5], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(upsampling_matrix(2, 3, align_corners=True), corners)
    centres = torch.tensor([[1, 0], [0.5, 0.5], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(upsampling_matrix(2, 3, align_corners=False), centres)
    # 2 to 4: with centres at -0.25, 0.25, 0.75, 1.25, without corners
    centres = torch.tensor([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]], dtype=torch.float64)
    torch.testing.assert_close(upsampling_matrix(2, 4, align_corners=False), centres)
    # tap 0 sees the row above, tap 2 the row below, zeros outside
    rows = shifted_by_taps(torch.tensor([[1.0], [2.0], [3.0]]))
    assert rows.tolist() == [[0, 1, 2], [1, 2, 3], [2, 3, 0]]


@pytest.mark.parametrize('align_corners', [True, False])
@pytest.mark.parametrize('size', [(90, 90), (13, 17), (8, 5), (6, 6), (3, 2), (1, 1)])
def test_pspnet_head(size, align_corners) -> None:
    head = make_head(align_corners=align_corners)
    x = torch.randn(2, 7, *size, dtype=torch.float64)
    torch.testing.assert_close(linearized(head)([x]), head([x]), rtol=0, atol=EXACT)


@pytest.mark.parametrize('scales', [(1,), (2, 3), (1, 4, 9, 16), (5, 1)])
def test_any_scales(scales) -> None:
    head = make_head(scales)
    x = torch.randn(1, 7, 11, 14, dtype=torch.float64)
    torch.testing.assert_close(linearized(head)([x]), head([x]), rtol=0, atol=EXACT)


@pytest.mark.parametrize('align_corners', [True, False])
def test_upernet_head(align_corners) -> None:
    head = make_head(kind='UPerHead', align_corners=align_corners)
    maps = [
        torch.randn(2, 5, 18, 22, dtype=torch.float64),
        torch.randn(2, 7, 9, 11, dtype=torch.float64),
    ]
    torch.testing.assert_close(linearized(head)(maps), head(maps), rtol=0, atol=EXACT)


@pytest.mark.parametrize(
    'changes',
    [dict(act_cfg=None), dict(norm_cfg=None), dict(act_cfg=dict(type='LeakyReLU'))],
    ids=['no activation', 'no norm', 'leaky'],
)
def test_other_layers_after_the_bottleneck(changes) -> None:
    head = make_head(**changes)
    x = torch.randn(1, 7, 10, 9, dtype=torch.float64)
    torch.testing.assert_close(linearized(head)([x]), head([x]), rtol=0, atol=EXACT)


def test_after_fusing_the_batchnorms() -> None:
    head = make_head()
    fused = copy.deepcopy(head)
    assert fuse_batchnorms(fused) == 5
    x = torch.randn(1, 7, 10, 9, dtype=torch.float64)
    torch.testing.assert_close(linearized(fused)([x]), head([x]), rtol=0, atol=EXACT)


def test_wrong_taps_are_seen(monkeypatch) -> None:
    """Negative control: without the zeros around the map the border is wrong."""
    head = make_head()
    x = torch.randn(1, 7, 10, 9, dtype=torch.float64)

    def replicated(matrix):
        padded = F.pad(matrix[None], (0, 0, 1, 1), mode='replicate')[0]
        return torch.cat([padded[tap : tap + len(matrix)] for tap in range(3)], dim=1)

    monkeypatch.setattr(pyramid, 'shifted_by_taps', replicated)
    gap = (linearized(head)([x]) - head([x])).abs()
    assert gap[..., 1:-1, 1:-1].max() < EXACT
    assert gap.max() > 1e-3


def test_other_alignment_is_seen() -> None:
    """Negative control: the two alignments differ."""
    head, other = make_head(align_corners=True), make_head(align_corners=False)
    x = torch.randn(1, 7, 10, 9, dtype=torch.float64)
    assert (linearized(other)([x]) - head([x])).abs().max() > 1e-3


def test_changing_sizes_and_types() -> None:
    """The constants kept from the last call must not serve another size or dtype."""
    head = make_head()
    after = linearized(head)
    for size in ((10, 9), (9, 10), (10, 9)):
        x = torch.randn(1, 7, *size, dtype=torch.float64)
        torch.testing.assert_close(after([x]), head([x]), rtol=0, atol=EXACT)
    x = torch.randn(1, 7, 9, 10)
    torch.testing.assert_close(after.float()([x]), head.float()([x]), rtol=0, atol=1e-5)
    assert len(after.bottleneck._axes) == 1


@pytest.mark.parametrize('first', [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_any_grad_mode_may_come_first(first) -> None:
    head = make_head()
    after = linearized(head)
    x = torch.randn(1, 7, 8, 9, dtype=torch.float64)
    with first():
        after([x])
    after([x]).sum().backward()
    with torch.inference_mode():
        torch.testing.assert_close(after([x]), head([x]), rtol=0, atol=EXACT)


def test_threads_with_several_sizes() -> None:
    head = make_head()
    after = linearized(head)
    maps = [torch.randn(1, 7, 6 + i, 7 + i, dtype=torch.float64) for i in range(4)]
    expected = [head([x]).detach() for x in maps]

    def serve(i: int) -> list[float]:
        with torch.no_grad():
            return [(after([maps[i]]) - expected[i]).abs().max().item() for _ in range(100)]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads take turns as often as possible
    try:
        with ThreadPoolExecutor(4) as pool:
            gaps = [gap for found in pool.map(serve, range(4)) for gap in found]
    finally:
        sys.setswitchinterval(interval)
    assert len(gaps) == 400
    assert max(gaps) < EXACT


def test_fake_tensors_leave_nothing_behind() -> None:
    head = make_head()
    after = linearized(head)
    x = torch.randn(1, 7, 8, 9, dtype=torch.float64)
    after([x])
    mode = FakeTensorMode()
    state = {name: mode.from_tensor(tensor) for name, tensor in after.state_dict().items()}
    for size in ((8, 9), (10, 11)):
        with mode:
            fake = torch.empty(1, 7, *size, dtype=torch.float64)
            out = torch.func.functional_call(after, state, ([fake],))
        assert out.shape == (1, 4, *size)
        x = torch.randn(1, 7, *size, dtype=torch.float64)
        torch.testing.assert_close(after([x]), head([x]), rtol=0, atol=EXACT)


def test_it_compiles_and_exports_at_new_sizes() -> None:
    head = make_head()
    after = linearized(head)
    compiled = torch.compile(after, fullgraph=True, backend='aot_eager')
    for size in ((8, 9), (9, 8), (8, 9)):
        x = torch.randn(1, 7, *size, dtype=torch.float64)
        torch.testing.assert_close(compiled([x]), head([x]), rtol=0, atol=EXACT)
    program = torch.export.export(after, ([x],))
    torch.testing.assert_close(program.module()([x]), head([x]), rtol=0, atol=EXACT)
    torch.testing.assert_close(after([x]), head([x]), rtol=0, atol=EXACT)


class HeadOfOurOwn(nn.Module):
    """Has mmseg's names and another way: the concat begins with the pyramid."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.psp_modules, self.bottleneck = head.psp_modules, head.bottleneck
        self.align_corners = head.align_corners

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bottleneck(torch.cat([*self.psp_modules(x), x], dim=1))


def patched(head: nn.Module) -> nn.Module:
    head._forward_feature = lambda inputs: 2 * head.bottleneck(inputs[0])
    return head


def hooked(name: str):
    def hook(head: nn.Module) -> nn.Module:
        head.get_submodule(name).register_forward_hook(lambda *call: None)
        return head

    return hook


def spectral(head: nn.Module) -> nn.Module:
    nn.utils.spectral_norm(head.bottleneck.conv)
    return head


def without_convs(head: nn.Module) -> nn.Module:
    head.psp_modules[0][1] = nn.Identity()
    return head


@pytest.mark.parametrize(
    'change',
    [
        HeadOfOurOwn,
        patched,
        hooked('psp_modules'),
        hooked('psp_modules.0.0'),
        hooked('bottleneck'),
        hooked('bottleneck.conv'),
        spectral,
        without_convs,
    ],
)
def test_heads_of_another_kind_are_left_as_they_are(change) -> None:
    head = change(make_head())
    pyramid, bottleneck = head.psp_modules, head.bottleneck
    assert linearize_pyramids(head) == 0
    assert head.psp_modules is pyramid
    assert head.bottleneck is bottleneck


def test_nothing_is_pooled_or_concatenated() -> None:
    after = linearized(make_head())
    assert not any(isinstance(m, nn.AdaptiveAvgPool2d) for m in after.modules())
    assert after.bottleneck.conv.in_channels == 7


def test_no_random_number_is_drawn_and_twice_is_once() -> None:
    head = make_head()
    state = torch.get_rng_state()
    after = linearized(head)
    assert linearize_pyramids(after) == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('kernel', [dict(stride=2, padding=1), dict(padding=2, dilation=2)])
def test_other_bottlenecks_are_left(kernel) -> None:
    head = make_head()
    head.bottleneck.conv = nn.Conv2d(31, 6, 3, bias=False, **kernel)
    assert linearize_pyramids(head) == 0


def test_all_rewrites_of_a_segmentor() -> None:
    from tests.common import TINY, segmentor_cfg

    init_default_scope('mmseg')
    model = randomise_batchnorms(MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64))))
    after, counts = deployed_copy(model, ['pyramid', 'dilation', 'batchnorm', 'branches'])
    assert list(counts) == ['branches', 'batchnorm', 'dilation', 'pyramid']
    assert counts == dict(branches=10, batchnorm=6, dilation=4, pyramid=1)
    x = torch.randn(1, 3, 97, 113)
    with torch.no_grad():
        before, now = model(x, mode='tensor'), after(x, mode='tensor')
    assert (now - before).abs().max() < 1e-5 * before.abs().max()


class OfOneMap(nn.Module):
    """A head that takes its input without the list."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head([x])


@pytest.mark.parametrize('align_corners', [True, False])
def test_a_graph_for_all_sizes(align_corners) -> None:
    """The matrices are computed in the graph; no size is one that was traced.

    With one scale: each takes PyTorch seconds to trace.
    """
    head = make_head((3,), align_corners=align_corners).eval()
    sides = {0: Dim('batch', min=1), 2: Dim('height', min=4), 3: Dim('width', min=4)}
    graph = torch.export.export(
        OfOneMap(linearized(head)).eval(),
        (torch.randn(2, 7, 10, 14, dtype=torch.float64),),
        dynamic_shapes=(sides,),
        strict=False,
    ).module()
    for size in ((4, 5), (13, 17), (31, 6), (24, 24)):
        x = torch.randn(1, 7, *size, dtype=torch.float64)
        torch.testing.assert_close(graph(x), head([x]), rtol=0, atol=EXACT)
        assert (graph(x) - head([x.flip(3)])).abs().max() > 1e-3  # negative control
