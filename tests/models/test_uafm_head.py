"""UAFMHead: equal to its equations, trains, fuses, exports, and refuses what cannot be."""

import copy
import itertools
import os
import subprocess
import sys

import onnx
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.export import export

from mmseg_repvgg.deploy.export import Options
from mmseg_repvgg.deploy.export import export as write_export
from mmseg_repvgg.deploy.export_graph import Graph, trace
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.write_formats import write_onnx
from mmseg_repvgg.models.uafm_head import ChannelAttention, SpatialAttention, UAFMHead
from mmseg_repvgg.reparam import compare, deployed_copy
from mmseg_repvgg.reparam.pyramid import MatrixPool, linearize_pyramids
from tests.common import TINY, randomise_batchnorms, runner_cfg
from tests.deploy.networks import INFO

WIDTHS = (16, 32, 64)  # of TINY's last three stages


def make_head(**changes) -> UAFMHead:
    torch.manual_seed(0)
    settings = dict(in_channels=WIDTHS, fusion_channels=(4, 6, 8), channels=5, num_classes=7)
    head = UAFMHead(**{**settings, **changes}, norm_cfg=dict(type='BN'))
    for module in head.modules():  # mmseg's initial values make the logits tiny
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return randomise_batchnorms(head).double()


def make_maps(size=(32, 48)):
    sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16)]
    return [torch.randn(2, c, *s, dtype=torch.float64) for c, s in zip(WIDTHS, sizes, strict=True)]


# A second implementation: functions of torch on a state dict, from the paper's equations


def conv_bn(state, name, x, act=F.relu):
    kernel = state[f'{name}.conv.weight']
    norm = {part: state[f'{name}.bn.{part}'] for part in ('weight', 'bias')}
    stats = (state[f'{name}.bn.running_mean'], state[f'{name}.bn.running_var'])
    return act(F.batch_norm(F.conv2d(x, kernel, padding=kernel.shape[-1] // 2), *stats, **norm))


def upsampled(x, like, align_corners):
    return F.interpolate(x, like.shape[2:], mode='bilinear', align_corners=align_corners)


def by_the_equations(state, maps, attention, scales=(1, 2, 4), align_corners=False):
    """SPPM, eq. (2) to (4), and the segmentation head."""
    last, total = maps[-1], 0
    for i, scale in enumerate(scales):
        pooled = conv_bn(state, f'sppm.stages.{i}.1', F.adaptive_avg_pool2d(last, scale))
        total = total + upsampled(pooled, last, align_corners)
    x = conv_bn(state, 'sppm.conv', total)
    for level in reversed(range(len(maps))):
        name = f'fusions.{level}'
        low = conv_bn(state, f'{name}.lateral', maps[level])
        up = upsampled(x, low, align_corners)
        if attention == 'spatial':
            both = [up.mean(1), up.max(1).values, low.mean(1), low.max(1).values]
            both = torch.stack(both, dim=1)
        else:
            both = [up.mean((2, 3)), up.flatten(2).max(2).values]
            both += [low.mean((2, 3)), low.flatten(2).max(2).values]
            both = torch.cat(both, dim=1)[:, :, None, None]
        between = F.relu if attention == 'spatial' else F.leaky_relu
        weight = conv_bn(state, f'{name}.attention.conv1', both, between)
        weight = conv_bn(state, f'{name}.attention.conv2', weight, torch.sigmoid)
        x = conv_bn(state, f'{name}.conv', up * weight + low * (1 - weight))
    return F.conv2d(conv_bn(state, 'conv', x), state['conv_seg.weight'], state['conv_seg.bias'])


CASES = [
    dict(attention=attention, lateral_kernel_size=kernel, align_corners=align)
    for attention, kernel, align in itertools.product(('spatial', 'channel'), (1, 3), (False, True))
]


@pytest.mark.parametrize('changes', CASES, ids=lambda case: '-'.join(map(str, case.values())))
def test_the_head_is_that_of_the_equations(changes):
    head, rest = make_head(**changes), (changes['attention'], (1, 2, 4), changes['align_corners'])
    for size in ((32, 48), (33, 61)):
        maps = make_maps(size)
        expected = by_the_equations(head.state_dict(), maps, *rest)
        found = head(maps)
        assert found.shape == (2, 7, *maps[0].shape[2:])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    wrong = copy.deepcopy(head)  # negative control: the attention weighs the other map
    last = wrong.fusions[0].attention.conv2
    last.bn.weight.data.neg_(), last.bn.bias.data.neg_()
    assert (wrong(maps) - expected).abs().max() > 1e-2


def set_conv(module, weights, places):
    """A conv without norm: some weights at the centre of the kernel, others 0."""
    module.conv.weight.data.zero_(), module.conv.bias.data.zero_()
    for (out, into), value in zip(places, weights, strict=True):
        centre = module.conv.kernel_size[0] // 2
        module.conv.weight.data[out, into, centre, centre] = value


def test_spatial_attention_by_hand():
    """Inputs of its convs: mean and maximum of the upsampled map, then of the larger map."""
    attention = SpatialAttention(2, norm_cfg=None)
    # channel 0: 1 mean(up) + 2 max(up); channel 1: mean(low) - 3 max(low), and ReLU
    set_conv(attention.conv1, (1, 2, 1, -3), [(0, 0), (0, 1), (1, 2), (1, 3)])
    set_conv(attention.conv2, (0.5, -1), [(0, 0), (0, 1)])
    up = torch.tensor([[[[1.0, 0.0]], [[3.0, -2.0]]]])  # 2 pixels: (1, 3) and (0, -2)
    low = torch.tensor([[[[4.0, -1.0]], [[2.0, -3.0]]]])  # (4, 2) and (-1, -3)
    # pixel 0: 2 + 2 * 3 = 8; relu(3 - 12) = 0: 4. Pixel 1: relu(-1 + 0) = 0; -2 + 3 = 1: -1
    expected = torch.tensor([[[[4.0, -1.0]]]]).sigmoid()
    torch.testing.assert_close(attention(up, low), expected)
    assert not torch.allclose(attention(low, up), expected)


def test_channel_attention_by_hand():
    """Inputs of its convs, each twice: mean and maximum over pixels of both maps."""
    attention = ChannelAttention(2, norm_cfg=None)
    # mean of up's channel 0, maximum of up's 1, mean of low's 0, maximum of low's 1; LeakyReLU
    set_conv(attention.conv1, (1, 1, 1, -2), [(0, 0), (0, 3), (0, 4), (0, 7)])
    set_conv(attention.conv2, (1, 10), [(0, 0), (1, 0)])
    up = torch.tensor([[[[1.0, 3.0]], [[5.0, -5.0]]]])  # means 2 and 0, maxima 3 and 5
    low = torch.tensor([[[[0.0, 4.0]], [[6.0, 8.0]]]])  # means 2 and 7, maxima 4 and 8
    # 2 + 5 + 2 - 2 * 8 = -7, times 0.01 below zero
    expected = torch.tensor([-0.07, -0.7]).sigmoid().view(1, 2, 1, 1)
    torch.testing.assert_close(attention(up, low), expected)
    assert not torch.allclose(attention(low, up), expected)


@pytest.mark.parametrize('attention', ['spatial', 'channel'])
def test_every_parameter_gets_a_gradient(attention):
    head = make_head(attention=attention).train()
    head(make_maps()).square().mean().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, f'No gradient for {name}'
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize('attention', ['spatial', 'channel'])
@pytest.mark.parametrize('align_corners', [False, True])
def test_folded_norms_and_pooling_by_matrices_are_equal(attention, align_corners):
    head = make_head(attention=attention, align_corners=align_corners)
    fused, counts = deployed_copy(head, ['batchnorm', 'pyramid'])
    # pyramid 3 + 1, per map lateral, two of the attention and the last, and the head's conv
    assert counts == {'batchnorm': 4 + 3 * 4 + 1, 'pyramid': 1}
    assert not [m for m in fused.modules() if isinstance(m, (nn.BatchNorm2d, nn.AdaptiveAvgPool2d))]
    for size in ((16, 16), (32, 48), (33, 61)):
        maps = make_maps(size)
        torch.testing.assert_close(fused(maps), head(maps), rtol=1e-10, atol=1e-10)
    assert linearize_pyramids(fused) == 0  # applying it again changes nothing
    fused.sppm.stages[1][0] = MatrixPool(3)  # negative control
    assert (fused(maps) - head(maps)).abs().max() > 1e-3


def test_a_pooling_with_hooks_is_left_alone():
    head = make_head()
    head.sppm.stages[0][0].register_forward_hook(lambda *_: None)
    assert linearize_pyramids(head) == 0
    assert isinstance(head.sppm.stages[1][0], nn.AdaptiveAvgPool2d)


def model_cfg(**changes) -> dict:
    head = dict(fusion_channels=[4, 6, 8], channels=5, num_classes=19, norm_cfg=dict(type='BN'))
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
        backbone=dict(type='DilatedRepVGG', arch=TINY, out_indices=(1, 2, 3)),
        decode_head=dict(type='UAFMHead', in_channels=list(WIDTHS), **head, **changes),
        test_cfg=dict(mode='whole'),
    )


def make_segmentor(**changes) -> nn.Module:
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = MODELS.build(model_cfg(**changes))
    assert type(model.decode_head) is UAFMHead
    for module in model.decode_head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    return randomise_batchnorms(model)


def test_a_fused_segmentor_is_equal():
    model = make_segmentor().double()
    images = torch.randn(1, 3, 97, 129, dtype=torch.float64)
    fused, counts = deployed_copy(model)  # every rewrite that is a default here
    assert (counts['branches'], counts['batchnorm'], counts['pyramid']) == (10, 17, 1)
    assert compare(model, fused, images).max_rel < 1e-10
    nn.init.constant_(fused.backbone.stem.branch_reparam.bias, 1.0)
    assert compare(model, fused, images).max_rel > 1e-3


@pytest.mark.parametrize('attention', [pytest.param('spatial', marks=pytest.mark.slow), 'channel'])
def test_an_onnx_file_without_pooling_gives_the_same_logits(attention, tmp_path):
    import onnxruntime

    size = (64, 104)
    model = make_segmentor(attention=attention)
    fused, _ = deployed_copy(model, ['branches', 'batchnorm', 'pyramid'])
    info = ModelDescription(**{**INFO, 'size': size, 'preprocessing_inside': False})
    write_onnx(trace(fused, info), tmp_path / 'a.onnx', 'logits')
    kinds = {node.op_type for node in onnx.load(tmp_path / 'a.onnx').graph.node}
    assert not [kind for kind in kinds if 'Pool' in kind]
    images = torch.randn(2, 3, *size)
    expected = model.encode_decode(images, [dict(img_shape=size)] * 2).detach()
    session = onnxruntime.InferenceSession(tmp_path / 'a.onnx')
    (found,) = session.run(None, {'images': images.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)
    (other,) = session.run(None, {'images': -images.numpy()})  # negative control
    assert (torch.from_numpy(other) - expected).abs().max() > 1e-2


@pytest.mark.slow
def test_torch_export_gives_the_same_logits_without_adaptive_pooling():
    model = make_segmentor()
    info = ModelDescription(**{**INFO, 'size': (64, 104), 'preprocessing_inside': False})
    images = torch.randn(2, 3, 64, 104)
    fused, _ = deployed_copy(model, ['branches', 'batchnorm', 'pyramid'])
    program = trace(fused, info)
    found = program.module()(images)
    torch.testing.assert_close(found, Graph(model, info)(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r'adaptive pooling to .*UAFMHead: keep it in --rewrites'):
        trace(model, info)  # without the rewrite
    with torch.no_grad():
        again = export(make_head(), (make_maps(),))  # the head alone, too
    assert 'adaptive_avg_pool2d' in str(again.graph)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['.onnx', '.pt2', '.xml', '.mnn'])
def test_every_format_is_exported_and_equal(suffix, scenes, tmp_path):
    cfg = runner_cfg(scenes, tmp_path, model=model_cfg())
    torch.save(dict(state_dict=make_segmentor().state_dict()), tmp_path / 'a.pth')
    out = tmp_path / f'b{suffix}'
    report = write_export(cfg, tmp_path / 'a.pth', out, options=Options((64, 104)))
    assert report.counts == {'branches': 10, 'batchnorm': 17, 'pyramid': 1}
    assert report.matches  # of every runtime here, at this and at an odd size


@pytest.mark.parametrize(
    ('changes', 'text'),
    [
        (dict(in_channels=(8, 16)), r'in_channels=\[8, 16\], .* must have one value per feature'),
        (dict(in_index=(0, 1)), 'must have one value per feature map, at least two each'),
        (dict(fusion_channels=(4, 8)), 'must have one value per feature map'),
        (dict(in_channels=(8,), in_index=(0,), fusion_channels=(4,)), 'at least two each'),
        (dict(in_channels=16), 'in_channels=16'),
        (dict(fusion_channels=(4, 0, 8)), 'must be integers of at least 1'),
        (dict(pool_scales=()), r'pool_scales=\[\] .* must be integers of at least 1'),
        (dict(pool_scales=(1, 2.5)), 'must be integers of at least 1'),
        (dict(channels=0), 'channels=0 of UAFMHead must be'),
        (dict(attention='cross'), "unknown attention 'cross'; choose from spatial, channel"),
        (dict(lateral_kernel_size=2), 'lateral_kernel_size=2 must be 1 or 3'),
    ],
)
def test_what_cannot_be_built_says_what_can(changes, text):
    with pytest.raises(ValueError, match=text):
        make_head(**changes)


def test_wrong_maps_are_named():
    head, maps = make_head(), make_maps()
    with pytest.raises(ValueError, match='the backbone returns 2 feature maps: give it as many'):
        head(maps[:2])
    turned = [maps[0][:, :, :2], maps[1], maps[2]]
    with pytest.raises(ValueError, match='in_index must go from the largest to the smallest'):
        head(turned)


ORDERS = {
    'ours, then a config': 'import mmseg_repvgg',
    'the head itself': 'from mmseg_repvgg.models.uafm_head import UAFMHead',
    'mmseg, then ours': 'import mmseg; import mmseg_repvgg',
    'mmengine, then ours': 'import mmengine; import mmseg_repvgg',
    "mmseg's models, then ours": """
import mmcv.utils.ext_loader
from mmseg_repvgg import mmcv_stub, registration
sys.meta_path[:] = [f for f in sys.meta_path if type(f) is not registration.AfterImport]
mmcv_stub.replace_load_ext()
import mmseg.models
registration.install()
""",
}


@pytest.mark.slow
def test_it_is_registered_whatever_is_imported_first():
    code = f"""
import os, sys
import cv2, torch, torchvision
for order, code in {ORDERS!r}.items():
    child = os.fork()
    if not child:
        exec(code)
        import mmengine
        assert ('mmseg' in sys.modules) == ('mmseg' in order or 'head' in order)
        from mmengine.registry import MODELS, init_default_scope
        init_default_scope('mmseg')
        head = dict(type='UAFMHead', in_channels=[1, 1, 1], channels=1, num_classes=3)
        assert type(MODELS.build(head)).__name__ == 'UAFMHead'
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, order
"""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
