"""Rewritten networks in the graphs of torch.fx, torch.compile, torch.export and make_fx."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from mmseg_repvgg.reparam import deployed_copy
from tests.common import TINY, randomise_batchnorms, segmentor_cfg

REWRITES = ['branches', 'batchnorm', 'dilation', 'pyramid']
TRACERS = {
    'fx': lambda net, x: torch.fx.symbolic_trace(net),
    'compile': lambda net, x: torch.compile(net, backend='aot_eager', fullgraph=True),
    'export': lambda net, x: torch.export.export(net, (x,)).module(),
    'make_fx': lambda net, x: make_fx(net)(x),
}
FORMATS = [torch.contiguous_format, torch.channels_last]


class Logits(nn.Module):
    """The feature maps and the logits of a segmentor."""

    def __init__(self, segmentor: nn.Module) -> None:
        super().__init__()
        self.backbone, self.decode_head = segmentor.backbone, segmentor.decode_head

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = self.backbone(x)
        return *maps, self.decode_head(maps)


@pytest.fixture(scope='module')
def nets() -> tuple[nn.Module, nn.Module]:
    """A PSPNet before and after all rewrites, in float64."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = randomise_batchnorms(MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64)))).double()
    rewritten, counts = deployed_copy(model, REWRITES)
    assert all(counts.values())
    return Logits(model).eval(), Logits(rewritten).eval()


@pytest.mark.parametrize(
    ('size', 'memory_format', 'name'),
    [
        pytest.param(
            size,
            memory_format,
            name,
            marks=[pytest.mark.slow]
            * (name == 'compile' and (size, memory_format) != ((64, 96), FORMATS[0])),
        )
        for size in [(64, 96), (97, 129)]
        for memory_format in FORMATS
        for name in TRACERS
    ],
)
def test_a_graph_gives_the_outputs_of_the_original(nets, name, memory_format, size) -> None:
    before, after = nets
    x = torch.randn(2, 3, *size, dtype=torch.float64).to(memory_format=memory_format)
    graph = TRACERS[name](copy.deepcopy(after).to(memory_format=memory_format), x)
    with torch.no_grad():
        expected, found = before(x), graph(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    if memory_format == torch.channels_last:
        assert all(m.is_contiguous(memory_format=torch.channels_last) for m in found[:-1])


def test_a_graph_of_fx_takes_every_size_and_can_be_exported(nets) -> None:
    before, after = nets
    graph = torch.fx.symbolic_trace(after)
    for batch, size in ((1, (64, 64)), (2, (97, 129)), (1, (57, 71))):
        x = torch.randn(batch, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(graph(x), before(x), rtol=0, atol=1e-10)
    exported = torch.export.export(graph, (x,)).module()
    torch.testing.assert_close(exported(x), before(x), rtol=0, atol=1e-10)
    with torch.no_grad():  # negative control: the graph computes with the weights of the network
        after.backbone.stage_4[0].branch_reparam.weight.neg_()
        assert (graph(x)[-1] - before(x)[-1]).abs().max() > 1e-3
        after.backbone.stage_4[0].branch_reparam.weight.neg_()


def test_a_graph_of_fx_of_an_upernet_head() -> None:
    init_default_scope('mmseg')
    settings = dict(channels=8, num_classes=4, align_corners=False, norm_cfg=dict(type='BN'))
    head = dict(settings, type='UPerHead', in_channels=[8] * 4, in_index=[0, 1, 2, 3])
    before = randomise_batchnorms(MODELS.build(head)).double()
    after, counts = deployed_copy(before, ['batchnorm', 'pyramid'])
    assert counts['pyramid'] == 1
    graph = torch.fx.symbolic_trace(after)
    for side in (32, 24):
        maps = [torch.randn(1, 8, side // 2**i, side // 2**i).double() for i in range(4)]
        torch.testing.assert_close(graph(maps), before(maps), rtol=0, atol=1e-10)
