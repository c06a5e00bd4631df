"""Conv-BN -> conv with bias, in heads and baselines."""

import copy
from collections import OrderedDict

import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.models import RepVGGBlock
from mmseg_repvgg.reparam.batchnorm import batchnorm_scale_shift, fold_batchnorm, fuse_batchnorms
from mmseg_repvgg.reparam.equivalence import compare
from mmseg_repvgg.reparam.rewrites import deployed_copy
from tests.common import randomise_batchnorms


def test_equation_3_by_hand():
    bn = nn.BatchNorm2d(1, eps=0.25)
    with torch.no_grad():
        (
            bn.weight.fill_(3.0),
            bn.bias.fill_(1.0),
            bn.running_mean.fill_(4.0),
            bn.running_var.fill_(2.0),
        )
    # sigma = sqrt(2 + 0.25) = 1.5, gamma / sigma = 2
    scale, shift = batchnorm_scale_shift(bn)
    assert (scale.item(), shift.item()) == (2.0, 1.0 - 4.0 * 2.0)
    kernel, bias = fold_batchnorm(torch.full((1, 1, 1, 1), 5.0), torch.tensor([0.5]), bn)
    assert (kernel.item(), bias.item()) == (10.0, -7.0 + 0.5 * 2.0)


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
@pytest.mark.parametrize('bias', [False, True])
def test_conv_modules_fuse_exactly(norm, bias):
    model = nn.Sequential(
        ConvModule(3, 8, 3, padding=1, bias=bias, norm_cfg=dict(type=norm)),
        ConvModule(8, 8, 3, padding=2, dilation=2, groups=4, bias=bias, norm_cfg=dict(type=norm)),
        ConvModule(8, 4, 1, bias=bias, norm_cfg=dict(type=norm, affine=False), act_cfg=None),
    )
    for module in model:
        randomise_statistics(module)
    fused, counts = deployed_copy(model.double().eval(), ['batchnorm'])
    assert counts == {'batchnorm': 3}
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    assert compare(model, fused, x).max_rel < 1e-12
    # negative control: the statistics of one norm differ
    model[1].norm.running_mean += 0.1
    assert compare(model, fused, x).max_rel > 1e-3
    assert fuse_batchnorms(fused) == 0


def randomise_statistics(module):
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)


def test_fused_state_dict_is_that_of_a_module_without_norm():
    module = ConvModule(3, 4, 3, norm_cfg=dict(type='BN')).eval()
    fuse_batchnorms(module)
    plain = ConvModule(3, 4, 3, norm_cfg=None)
    plain.load_state_dict(module.state_dict(), strict=True)
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(plain(x), module(x))


@pytest.mark.parametrize('order', [('norm', 'conv', 'act'), ('conv', 'act', 'norm')])
def test_other_orders_are_left_alone(order):
    model = nn.Sequential(ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), order=order))
    randomise_batchnorms(model)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': 0}
    x = torch.randn(1, 4, 7, 7)
    assert compare(model, fused, x).max_abs == 0


def test_only_pairs_that_follow_each_other_in_a_sequential_fuse():
    model = nn.Sequential(
        OrderedDict(
            a=nn.Conv2d(3, 4, 1),
            relu=nn.ReLU(),
            bn_after_relu=nn.BatchNorm2d(4),
            b=nn.Conv2d(4, 4, 1, bias=False),
            bn=nn.BatchNorm2d(4),
            linear_like=nn.ConvTranspose2d(4, 4, 2),
            bn_after_transposed=nn.BatchNorm2d(4),
            group=nn.Conv2d(4, 4, 1),
            gn=nn.GroupNorm(2, 4),
        )
    )
    randomise_batchnorms(model)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': 1}
    assert isinstance(fused.bn, nn.Identity)
    assert isinstance(fused.bn_after_relu, nn.BatchNorm2d)
    assert compare(model, fused, torch.randn(1, 3, 6, 6)).max_rel < 1e-5


# convs of the body + stem + one shortcut a stage; ResNetV1c's stem has 3 convs
@pytest.mark.parametrize(
    ('kind', 'depth', 'pairs'),
    [
        ('ResNet', 18, 16 + 1 + 3),
        ('ResNet', 50, 48 + 1 + 4),
        ('ResNetV1c', 50, 48 + 3 + 4),
        ('ResNetV1c', 101, 99 + 3 + 4),
    ],
)
def test_resnet_baselines_fuse_exactly(kind, depth, pairs):
    init_default_scope('mmseg')
    model = MODELS.build(
        dict(
            type=kind,
            depth=depth,
            strides=(1, 2, 1, 1),
            dilations=(1, 1, 2, 4),
            norm_cfg=dict(type='SyncBN'),
        )
    )
    randomise_batchnorms(model)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': pairs}
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    x = torch.randn(1, 3, 65, 65)
    assert compare(model, fused, x).max_rel < 1e-4
    fused.layer2[0].conv2.bias.data.zero_()  # negative control
    assert compare(model, fused, x).max_rel > 1e-3


def test_what_is_no_batchnorm_is_refused():
    with pytest.raises(ValueError, match='not GroupNorm; use norm_cfg'):
        batchnorm_scale_shift(nn.GroupNorm(1, 4))


def test_branches_of_repvgg_blocks_are_left_to_their_own_rewrite():
    model = nn.Sequential(RepVGGBlock(3, 3), ConvModule(3, 3, 1, norm_cfg=dict(type='BN')))
    randomise_batchnorms(model)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': 1}
    _, counts = deployed_copy(fused, ['branches'])
    assert counts == {'branches': 1}


class NormAndTanh(nn.BatchNorm2d):
    """As timm's BatchNormAct2d: a subclass that does more than normalise."""

    def forward(self, x):
        return super().forward(x).tanh()


class SequentialWithSkip(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def pair(conv=None, norm=None):
    return nn.Sequential(conv or nn.Conv2d(4, 4, 1), norm or nn.BatchNorm2d(4))


class TwoNorms(nn.Module):
    """One conv before two norms, as in heads that share a conv between scales."""

    def __init__(self):
        super().__init__()
        conv = nn.Conv2d(4, 4, 1)
        self.first, self.second = pair(conv), pair(conv)

    def forward(self, x):
        return self.first(x) + self.second(x)


class TwoParents(nn.Module):
    """One pair under two names."""

    def __init__(self):
        super().__init__()
        self.first = pair()
        self.all = nn.ModuleList([self.first])

    def forward(self, x):
        return self.first(self.all[0](x))


def patched():
    model = pair()
    plain = model[0].forward
    model[0].forward = lambda x: 2 * plain(x)
    return model


def hooked(part):
    model = pair()
    model[part].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


@pytest.mark.parametrize(
    ('make', 'count'),
    [
        (lambda: pair(norm=NormAndTanh(4)), 0),
        (lambda: SequentialWithSkip(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)), 0),
        (TwoNorms, 0),
        (TwoParents, 1),
        (patched, 0),
        (lambda: hooked(0), 0),
        (lambda: hooked(1), 0),
        (lambda: pair(norm=nn.BatchNorm2d(4, affine=False)), 1),
    ],
    ids=[
        'norm and act',
        'own forward',
        'shared conv',
        'two parents',
        'patched',
        'hook on conv',
        'hook on norm',
        'no affine',
    ],
)
def test_what_cannot_be_fused_is_left(make, count):
    model = make().double()
    randomise_statistics(model)
    fused = copy.deepcopy(model)
    assert fuse_batchnorms(fused) == count
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert compare(model, fused, x).max_rel < 1e-12


def test_timms_norm_with_activation_is_left():
    timm_layers = pytest.importorskip('timm.layers')
    model = randomise_batchnorms(pair(norm=timm_layers.BatchNormAct2d(4)))
    assert fuse_batchnorms(model) == 0
    with pytest.raises(ValueError, match='not BatchNormAct2d'):
        batchnorm_scale_shift(model[1])


def test_a_batchnorm_without_bias():
    try:
        model = pair(norm=nn.BatchNorm2d(4, bias=False)).double()
    except TypeError:
        pytest.skip('this PyTorch has no BatchNorm2d(bias=False)')
    randomise_statistics(model)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': 1}
    assert compare(model, fused, torch.randn(1, 4, 3, 3, dtype=torch.float64)).max_rel < 1e-12


def test_a_failed_fuse_leaves_the_model_as_it_was():
    model = nn.Sequential(pair(), pair(norm=nn.BatchNorm2d(4, track_running_stats=False)))
    modules = list(model.modules())
    with pytest.raises(ValueError, match='track_running_stats=False'):
        fuse_batchnorms(model)
    assert list(model.modules()) == modules


@pytest.mark.parametrize(('dtype', 'fits'), [(torch.float16, False), (torch.bfloat16, True)])
def test_weights_past_the_range_of_half_precision_are_refused(dtype, fits):
    model = pair(nn.Conv2d(4, 4, 1, bias=False))
    with torch.no_grad():  # gamma / sigma = 128 / 2**-10 = 2**17, more than 65504
        model[0].weight.fill_(1.0)
        model[1].running_var.fill_(2**-20)
        model[1].eps = 0.0
        model[1].weight.fill_(128.0)
    model.to(dtype)
    if fits:
        assert fuse_batchnorms(model) == 1
        return
    with pytest.raises(
        ValueError, match=r'a weight of 1.31e\+05, above the largest torch.float16, 6.55'
    ):
        fuse_batchnorms(model)
    assert isinstance(model[1], nn.BatchNorm2d)


def test_mmcvs_efficient_evaluation_is_turned_off():
    """It needs the norm, which is no more."""
    model = ConvModule(4, 4, 3, norm_cfg=dict(type='BN'), efficient_conv_bn_eval=True)
    randomise_batchnorms(model)
    fused, counts = deployed_copy(model, ['batchnorm'])
    assert counts == {'batchnorm': 1}
    assert fused.efficient_conv_bn_eval_forward is None
    assert compare(model, fused, torch.randn(1, 4, 5, 5)).max_rel < 1e-5


def test_norms_that_mmengine_made_of_sync_batchnorms_fuse():
    model = pair(norm=nn.SyncBatchNorm(4))
    randomise_batchnorms(model)
    reverted = revert_sync_batchnorm(copy.deepcopy(model))
    assert type(reverted[1]) is not nn.BatchNorm2d
    assert fuse_batchnorms(reverted) == 1
    assert compare(model, reverted, torch.randn(1, 4, 5, 5)).max_rel < 1e-5
