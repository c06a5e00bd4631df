"""Which layout feature maps have in training, and that nobody outside sees it."""

import torch

from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.models.layout import laid_out_for_training
from tests.common import TINY


def lies_as(x):
    return 'NHWC' if x.is_contiguous(memory_format=torch.channels_last) else 'NCHW'


def test_ordinary_convs_train_channels_last_and_dilated_ones_do_not():
    x = torch.randn(2, 8, 9, 9)
    for dilation, expected in ((1, 'NHWC'), (2, 'NCHW')):
        for given in (x, x.contiguous(memory_format=torch.channels_last)):
            assert lies_as(laid_out_for_training(given, dilation)) == expected
            block = RepVGGBlock(8, 8, dilation=dilation)
            assert lies_as(block(given)) == expected
            assert lies_as(block.eval()(given)) == lies_as(given)
    for other in (x.bfloat16(), x.to('meta')):
        assert laid_out_for_training(other, 1) is other


def test_a_backbone_gives_maps_as_its_images_lie():
    model = DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
    images = torch.randn(2, 3, 32, 32)
    for mode in (True, False):
        assert all(out.is_contiguous() for out in model.train(mode)(images))
    out, *_ = model(images.contiguous(memory_format=torch.channels_last))
    assert lies_as(out) == 'NHWC'


def test_gradients_are_those_of_the_other_layout(monkeypatch):
    torch.manual_seed(0)
    model = DilatedRepVGG(TINY).double()
    x, found = torch.randn(4, 3, 64, 64, dtype=torch.float64), []
    for layout in (torch.channels_last, torch.contiguous_format):
        monkeypatch.setattr(
            'mmseg_repvgg.models.block.laid_out_for_training',
            lambda x, dilation, layout=layout: x.contiguous(memory_format=layout),
        )
        model.zero_grad()
        model(x)[-1].square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
