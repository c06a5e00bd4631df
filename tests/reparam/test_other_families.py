"""Blocks of other families fuse by their own methods, compared before and after."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.models.deployed import build_deployed, deployed_config
from mmseg_repvgg.reparam import EquivalenceError, compare, deployed_copy
from mmseg_repvgg.reparam.branches import fuse_branches, fusible_blocks
from tests.common import TINY, randomise_batchnorms

NARROW = dict(num_blocks=[1, 2, 2, 1], width_factor=[0.125] * 4)
REPVGG = dict(
    type='mmpretrain.RepVGG',
    arch=dict(NARROW, group_layer_map=None, se_cfg=None),
    out_indices=(0, 1, 2, 3),
)
MOBILEONE = dict(
    type='mmpretrain.MobileOne',
    arch=dict(NARROW, num_conv_branches=[1, 2, 1, 1], num_se_blocks=[0, 0, 1, 1]),
    out_indices=(0, 1, 2, 3),
    se_cfg=dict(ratio=2),
)


def timm_backbone(name: str) -> dict:
    pytest.importorskip('timm')
    return dict(type='mmpretrain.TIMMBackbone', model_name=name, features_only=True)


def segmentor_of(backbone: dict) -> dict:
    """A segmentor with an FCN head on the last map of ``backbone``."""
    init_default_scope('mmseg')
    built = MODELS.build(backbone)
    built.eval()  # not chained: of mmpretrain's backbones it returns None
    with torch.no_grad():
        maps = built(torch.zeros(1, 3, 64, 64))
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor'),
        backbone=backbone,
        decode_head=dict(
            type='FCNHead',
            in_channels=maps[-1].shape[1],
            in_index=len(maps) - 1,
            channels=8,
            num_classes=4,
            num_convs=1,
            norm_cfg=dict(type='BN'),
        ),
        test_cfg=dict(mode='whole'),
    )


def assert_fuses(backbone: dict, count: int) -> nn.Module:
    """Compare a segmentor before and after, and with a wrong tensor; returns the fused one."""
    model = randomise_batchnorms(MODELS.build(segmentor_of(backbone)))
    fused, counts = deployed_copy(model, ['branches', 'batchnorm'])
    assert counts['branches'] == count
    images = torch.randn(1, 3, 97, 129)
    assert compare(model, fused, images).max_rel < 1e-4
    again, counts = deployed_copy(fused, ['branches', 'batchnorm'])
    assert counts == dict(branches=0, batchnorm=0)
    assert compare(fused, again, images).max_abs == 0
    # negative control: the kernel of the first conv is turned around
    first = next(m for m in fused.backbone.modules() if isinstance(m, nn.Conv2d))
    first.weight.data.neg_()
    assert compare(model.backbone, fused.backbone, images).max_rel > 1e-3
    return fused


# stem + 1 + 2 + 2 + 1 blocks; MobileOne has two a layer and one stem
@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
@pytest.mark.parametrize(('backbone', 'count'), [(REPVGG, 7), (MOBILEONE, 13)])
def test_mmpretrain(backbone, count, norm) -> None:
    fused = assert_fuses(dict(backbone, norm_cfg=dict(type=norm)), count)
    assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert fused.backbone.deploy


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('mobileone_s1', 1 + 2 * (2 + 8 + 10 + 1)),  # stem, and two blocks a layer
        ('repvit_m1', 106),  # all of its conv-BN pairs
        ('fastvit_t8', 26 + 3),  # MobileOne blocks and large kernels
    ],
)
def test_timm(name, count) -> None:
    fused = assert_fuses(timm_backbone(name), count)
    assert not [n for n, _ in fused.named_modules() if n.endswith(('conv_scale', 'identity'))]
    if name != 'fastvit_t8':  # which has pairs that are no branches
        assert not [m for m in fused.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    'backbone',
    [
        REPVGG,
        MOBILEONE,
        'fastvit_t8',
        pytest.param('mobileone_s1', marks=pytest.mark.slow),
        pytest.param('repvit_m1', marks=pytest.mark.slow),
    ],
    ids=lambda backbone: backbone if isinstance(backbone, str) else backbone['type'],
)
def test_training_weights_load_into_the_deployed_model(backbone) -> None:
    backbone = timm_backbone(backbone) if isinstance(backbone, str) else backbone
    cfg = segmentor_of(backbone)
    model = randomise_batchnorms(MODELS.build(cfg))
    settings = {key: value for key, value in cfg.items() if key != 'type'}
    deployed = build_deployed('mmseg.EncoderDecoder', ['branches', 'batchnorm'], **settings)
    deployed.load_state_dict(model.state_dict())
    images = torch.randn(1, 3, 97, 129)
    assert compare(model, deployed, images).max_rel < 1e-4
    fused, _ = deployed_copy(model, ['branches', 'batchnorm'])
    again = build_deployed('mmseg.EncoderDecoder', ['branches', 'batchnorm'], **settings)
    again.load_state_dict(fused.state_dict())
    assert compare(fused, again, images).max_abs == 0


def test_the_deployed_model_is_built_without_a_download() -> None:
    backbone = dict(type='mmpretrain.TIMMBackbone', model_name='repvit_m1', pretrained=True)
    model = dict(type='EncoderDecoder', backbone=backbone, pretrained='a.pth')
    built = deployed_config(model, 'mmseg', ['branches'])
    assert built['backbone'] == dict(type='mmpretrain.TIMMBackbone', model_name='repvit_m1')
    assert 'pretrained' not in built


@pytest.mark.parametrize(
    'change',
    [dict(arch=dict(REPVGG['arch'], se_cfg=dict(ratio=2)))],
    ids=['squeeze-excitation is lost'],
)
def test_a_wrong_fused_form_is_refused(change) -> None:
    """mmpretrain's fused RepVGG block leaves its squeeze-excitation out."""
    model = randomise_batchnorms(MODELS.build(dict(REPVGG, **change)))
    before = copy.deepcopy(model.state_dict())
    holder = nn.ModuleDict(dict(ours=RepVGGBlock(3, 3), theirs=model)).eval()
    text = r"RepVGG.switch_to_deploy\(\) of 'theirs' changes the outputs of the block"
    with pytest.raises(EquivalenceError, match=text):
        fuse_branches(holder)
    assert list(model.state_dict()) == list(before)
    assert not holder['ours'].deploy


class ConvNorm(nn.Sequential):
    """As in LeViT, RepViT, ...: ``fuse`` returns the conv that takes its place."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels))

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        conv, norm = self
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        fused = nn.Conv2d(conv.in_channels, conv.out_channels, 1)
        fused.weight.copy_(conv.weight * scale[:, None, None, None])
        fused.bias.copy_(norm.bias - norm.running_mean * scale)
        return fused


class Residual(nn.Module):
    """``x + inner(x)``: its own ``fuse`` leaves the inner one to the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ConvNorm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)

    def fuse(self) -> nn.Module:
        return self


class Network(nn.Module):
    """Its blocks are registered twice, and called by the second name."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.first = self.blocks[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (self.first, *self.blocks):
            x = block(x)
        return x


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_what_fuse_returns_takes_the_place_everywhere(dtype) -> None:
    model = randomise_batchnorms(Network(ConvNorm(), Residual())).to(dtype)
    state = torch.get_rng_state()
    fused, counts = deployed_copy(model, ['branches'])
    assert torch.equal(torch.get_rng_state(), state)
    assert counts == {'branches': 2}
    assert fused.first is fused.blocks[0]
    assert isinstance(fused.first, nn.Conv2d)
    assert isinstance(fused.blocks[1].inner, nn.Conv2d)
    assert {p.dtype for p in fused.parameters()} == {dtype}
    x = torch.randn(1, 4, 5, 6).to(dtype)
    assert compare(model, fused, x).max_rel < (1e-5 if dtype != torch.bfloat16 else 5e-2)


class Other(nn.Module):
    """Has a method of a usual name that does something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * x


class TwoMaps(Other):
    def fuse(self, x, y):
        raise AssertionError('called')


class Vae(Other):
    def reparameterize(self, mean, log_var):
        raise AssertionError('called')


class FuseLayer(Other):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(4, 4, 1)


class Sum(Other):
    def fuse(self):
        return torch.zeros(1)


@pytest.mark.parametrize('other', [TwoMaps, Vae, FuseLayer, Sum])
def test_other_methods_of_these_names_are_left(other) -> None:
    model = Network(other(), RepVGGBlock(4, 4)).eval()
    assert fuse_branches(model) == 1
    assert type(model.first) is other
    with pytest.raises(ValueError, match='holds no RepVGG block'):
        fuse_branches(Network(other()))


@pytest.mark.parametrize('blocks', [[ConvNorm], [Residual], [ConvNorm, Residual, Sum]])
def test_twice_is_once(blocks) -> None:
    model = randomise_batchnorms(Network(*(block() for block in blocks)))
    count = sum(block is not Sum for block in blocks)
    assert fuse_branches(model) == count
    modules, state = list(model.modules()), copy.deepcopy(model.state_dict())
    for again in (model, copy.deepcopy(model)):
        assert fuse_branches(again) == 0
        assert all(torch.equal(state[n], t) for n, t in again.state_dict().items())
    assert list(model.modules()) == modules
    # negative control: a block that comes later is fused
    model.blocks.append(randomise_batchnorms(ConvNorm()))
    assert fuse_branches(model) == 1


class Broken(ConvNorm):
    def fuse(self):
        raise NotImplementedError('not for groups')


class Wrong(ConvNorm):
    def fuse(self):
        fused = super().fuse()
        fused.bias.data += 1
        return fused


class TwoInputs(ConvNorm):
    def forward(self, x, y):
        return super().forward(x + y)


@pytest.mark.parametrize(
    ('block', 'error', 'text'),
    [
        (
            Broken,
            ValueError,
            r"Broken.fuse\(\) of 'blocks.0' fails with NotImplementedError: not for groups",
        ),
        (
            Wrong,
            EquivalenceError,
            r"Wrong.fuse\(\) of 'blocks.0' changes the outputs of the block",
        ),
        (TwoInputs, ValueError, r"TwoInputs.fuse\(\) of 'blocks.0' cannot be checked"),
    ],
)
def test_what_fails_leaves_the_model_as_it_was(block, error, text) -> None:
    model = randomise_batchnorms(Network(block(), ConvNorm(), RepVGGBlock(4, 4)))
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises(error, match=text):
        fuse_branches(model)
    assert list(model.modules()) == modules
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())


def test_a_container_that_fuses_our_blocks_is_left_to_them() -> None:
    class Student(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = DilatedRepVGG(TINY)

        def switch_to_deploy(self) -> None:
            self.backbone.switch_to_deploy()

        def forward(self, x):
            return self.backbone(x)

    student = Student().eval()
    assert len(fusible_blocks(student)) == 10
    assert fuse_branches(student) == 10
    assert student.backbone.deploy
