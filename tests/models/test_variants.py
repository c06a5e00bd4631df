"""The blocks of Tables 6 and 7: forward as written, training, fusing, and what is refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmseg_repvgg.models import VARIANTS, DilatedRepVGG, RepVGGBlock
from mmseg_repvgg.models.layer import Layer
from mmseg_repvgg.models.residual import PlainLayer, ResidualBlock
from mmseg_repvgg.models.variants import (
    AsymmetricConvBlock,
    DiracNetLayer,
    IdentityWithoutBN,
    PostAdditionBN,
    QARepVGGBlock,
    ReLUInBranches,
    TrivialReparam,
)
from mmseg_repvgg.reparam.branches import fuse_branches
from mmseg_repvgg.reparam.equivalence import compare
from mmseg_repvgg.reparam.rewrites import deployed_copy
from tests.common import randomise_batchnorms

# as TINY, with stages that can be paired, and groupwise layers
EVEN = dict(
    num_blocks=(2, 2, 4, 1), width_factor=(0.125, 0.125, 0.125, 0.125), group_layer_map={2: 2, 6: 4}
)
DILATED = dict(strides=(2, 2, 1, 1), dilations=(1, 1, (1, 2, 2, 2), 4))
UNFUSIBLE = {
    'relu_in_branches': 'ReLU between a branch and the addition',
    'residual_reorg': 'a shortcut across two 3x3 layers',
}
KINDS = [dict(block=name) for name in VARIANTS] + [
    dict(block=name, branches=branches)
    for name in ('repvgg', 'post_addition_bn', 'relu_in_branches', 'qa_repvgg')
    for branches in (('3x3',), ('3x3', 'identity'), ('3x3', '1x1'))
]
KINDS += [dict(block='identity_without_bn', branches=('3x3', 'identity'))]
FUSIBLE = [kind for kind in KINDS if kind['block'] not in UNFUSIBLE]


def name_of(kind):
    return '-'.join([kind['block'], *kind.get('branches', ())])


def every(kinds):
    return pytest.mark.parametrize('kind', kinds, ids=name_of)


def trained(model: nn.Module) -> nn.Module:
    """Random BatchNorms, and the vectors of DiracNet away from their equal initial values."""
    randomise_batchnorms(model)
    for name, parameter in model.named_parameters():
        if name.endswith(('conv.a', 'conv.b')):
            parameter.data.copy_(0.5 + torch.rand_like(parameter))
    return model


def bn(t, norm):
    return F.batch_norm(
        t, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
    )


def identity_without_bn(block, conv, x, keeps):
    y = bn(conv(x, block.branch_3x3.conv.weight), block.branch_3x3.norm)
    y = y + bn(conv(x, block.branch_1x1.conv.weight), block.branch_1x1.norm)
    return y + x if keeps else y


def post_addition_bn(block, conv, x, keeps):
    y = conv(x, block.branch_3x3.conv.weight) + conv(x, block.branch_1x1.conv.weight)
    return bn(y + x if keeps else y, block.norm)


def qa_repvgg(block, conv, x, keeps):
    y = bn(conv(x, block.branch_3x3.conv.weight), block.branch_3x3.norm)
    y = y + conv(x, block.branch_1x1.conv.weight)
    return bn(y + x if keeps else y, block.norm)


def relu_in_branches(block, conv, x, keeps):
    y = bn(conv(x, block.branch_3x3.conv.weight), block.branch_3x3.norm).relu()
    y = y + bn(conv(x, block.branch_1x1.conv.weight), block.branch_1x1.norm).relu()
    return y + bn(x, block.branch_norm).relu() if keeps else y


def asymmetric(block, conv, x, keeps):
    branches = (block.branch_3x3, block.branch_1x3, block.branch_3x1)
    return sum(bn(conv(x, branch.conv.weight), branch.norm) for branch in branches)


def dirac(block, conv, x, keeps):
    layer = block.branch_3x3.conv
    w_norm = layer.weight / layer.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
    identity = nn.init.dirac_(torch.empty_like(layer.weight), block.groups)
    kernel = layer.a.view(-1, 1, 1, 1) * identity + layer.b.view(-1, 1, 1, 1) * w_norm
    return bn(conv(x, kernel), block.branch_3x3.norm)


def trivial(block, conv, x, keeps):
    weight = block.branch_3x3.conv.weight
    identity = nn.init.dirac_(torch.empty_like(weight), block.groups)
    return bn(conv(x, weight + identity), block.branch_3x3.norm)


FORMULAS = {
    IdentityWithoutBN: identity_without_bn,
    PostAdditionBN: post_addition_bn,
    QARepVGGBlock: qa_repvgg,
    ReLUInBranches: relu_in_branches,
    AsymmetricConvBlock: asymmetric,
    DiracNetLayer: dirac,
    TrivialReparam: trivial,
}
GEOMETRIES = list(itertools.product((8, 12), (1, 2), (1, 2, 4), (1, 2, 4)))


def conv_of(stride, groups, dilation):
    def conv(x, weight):
        padding = tuple(dilation * (taps // 2) for taps in weight.shape[2:])
        return F.conv2d(x, weight, None, stride, padding, dilation, groups)

    return conv


@pytest.mark.parametrize('kind', FORMULAS, ids=lambda kind: kind.__name__)
def test_the_forward_pass_is_the_formula_and_the_fused_conv_equals_it(kind):
    for c_out, stride, groups, dilation in GEOMETRIES:
        block = trained(kind(8, c_out, stride=stride, groups=groups, dilation=dilation)).double()
        x = torch.randn(2, 8, 13, 11, dtype=torch.float64)
        keeps = c_out == 8 and stride == 1
        expected = FORMULAS[kind](block, conv_of(stride, groups, dilation), x, keeps).relu()
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)
        if not kind.cannot_fuse:
            fused, counts = deployed_copy(block, ['branches'])
            assert counts == {'branches': 1}
            assert compare(block, fused, x).max_rel < 1e-12
            assert set(fused._modules) == {'branch_reparam', 'se_layer', 'act', 'post_se'}


def without_identity(block):
    block.branch_norm = None


def without_norm(block):
    block.norm = nn.Identity()


def without_norm_of_3x3(block):
    block.branch_3x3.norm = nn.Identity()


def without_relu(block):
    block._add_branches = lambda x: RepVGGBlock._add_branches(block, x)


def with_turned_kernels(block):
    for branch in (block.branch_1x3, block.branch_3x1):
        branch.conv.weight.data = branch.conv.weight.data.flip(2, 3)


def without_a(block):
    block.branch_3x3.conv.a.data.zero_()


def with_identity_twice(block):
    centre = block.branch_3x3.conv.weight.data[:, :, 1, 1]
    centre += torch.eye(len(centre)).to(centre)


@pytest.mark.parametrize(
    ('kind', 'fault'),
    [
        (IdentityWithoutBN, without_identity),
        (PostAdditionBN, without_norm),
        (QARepVGGBlock, without_norm),
        (QARepVGGBlock, without_norm_of_3x3),
        (ReLUInBranches, without_relu),
        (AsymmetricConvBlock, with_turned_kernels),
        (DiracNetLayer, without_a),
        (TrivialReparam, with_identity_twice),
    ],
)
def test_a_block_without_what_makes_it_one_is_told_apart(kind, fault):
    """Negative control of the comparisons above."""
    block, x = trained(kind(8, 8)).double(), torch.randn(1, 8, 9, 9, dtype=torch.float64)
    expected = FORMULAS[kind](block, conv_of(1, 1, 1), x, True).relu()
    fused = None if kind.cannot_fuse else deployed_copy(block, ['branches'])[0]
    fault(block)
    assert (block(x) - expected).abs().max() > 1e-2
    if fused is not None:
        assert compare(block, fused, x).max_rel > 1e-2


@every(KINDS)
def test_every_kind_trains(kind):
    torch.manual_seed(0)
    model = DilatedRepVGG(EVEN, **DILATED, **kind)
    model.init_weights()
    head = nn.Linear(64, 2)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    model.train()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD([*parameters.values(), *head.parameters()], lr=0.05, momentum=0.9)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = F.cross_entropy(head(model(images)[-1].mean((2, 3))), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        for name, parameter in parameters.items():
            assert parameter.grad is not None, f'No gradient for {name}'
            assert parameter.grad.isfinite().all(), f'NaN gradient for {name}'
            assert parameter.grad.any(), f'The gradient of {name} is zero'
    assert all(torch.tensor(losses).isfinite())
    assert losses[-1] < losses[0]


@every(FUSIBLE)
def test_a_fused_backbone_is_equal_and_loads_into_a_deployed_one(kind):
    model = trained(DilatedRepVGG(EVEN, **DILATED, **kind)).double()
    x = torch.randn(1, 3, 49, 64, dtype=torch.float64)
    fused, counts = deployed_copy(model, ['branches', 'batchnorm'])
    assert counts == {'branches': 10, 'batchnorm': 0}
    assert compare(model, fused, x).max_rel < 1e-10
    for settings in (kind, {}):  # all end in the same network
        built = DilatedRepVGG(EVEN, **DILATED, **settings, deploy=True).double()
        built.load_state_dict(fused.state_dict(), strict=True)
        assert compare(model, built, x).max_rel < 1e-10
    undilated, counts = deployed_copy(model, ['branches', 'dilation'])
    assert counts['dilation'] == 4
    assert compare(model, undilated, x).max_rel < 1e-10
    with torch.no_grad():  # negative control: one kernel of ten, one tap off
        conv = fused.stage_3[1].branch_reparam
        conv.weight.copy_(conv.weight.roll(1, dims=3))
    assert compare(model, fused, x).max_rel > 1e-3


@pytest.mark.parametrize('block', UNFUSIBLE)
def test_what_cannot_be_fused_says_why_and_stays_as_it_is(block):
    model = trained(DilatedRepVGG(EVEN, **DILATED, block=block)).double()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for fuse in (model.switch_to_deploy, lambda: fuse_branches(nn.Sequential(model))):
        with pytest.raises(ValueError, match=f'cannot be fused: .*{UNFUSIBLE[block]}'):
            fuse()
    with pytest.raises(ValueError, match=f'deploy=True: .*{block}.* cannot be fused'):
        DilatedRepVGG(EVEN, block=block, deploy=True)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    if block == 'relu_in_branches':
        with pytest.raises(ValueError, match='cannot be fused'):
            model.stem.switch_to_deploy()

    x = torch.randn(1, 3, 49, 64, dtype=torch.float64)
    served, counts = deployed_copy(model, ['batchnorm', 'dilation'])
    # ten layers and as many 1x1 convs, or the shortcuts that start three stages (the first two with
    # a stride, the third with another width)
    assert counts['batchnorm'] == {'relu_in_branches': 20, 'residual_reorg': 10 + 3}[block]
    assert compare(model, served, x).max_rel < 1e-10
    served.stem.get_submodule(
        'branch_3x3.conv' if block != 'residual_reorg' else 'conv'
    ).bias.data += 1
    assert compare(model, served, x).max_rel > 1e-3  # negative control


def test_residual_reorg_has_the_layers_that_the_paper_counts():
    with torch.device('meta'):
        model = DilatedRepVGG('B0', block='residual_reorg')
    assert isinstance(model.stem, PlainLayer)
    kinds = [[type(block) for block in stage] for stage in model.stages]
    residual = [[ResidualBlock] * count for count in (2, 3, 8)]
    assert kinds == [*residual, [PlainLayer]]
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert sum(conv.kernel_size == (3, 3) for conv in convs) == 28
    # the projections of stage2 (stride), stage3 and stage4 (stride and width)
    assert [conv.stride for conv in convs if conv.kernel_size == (1, 1)] == [(2, 2)] * 3


@pytest.mark.parametrize(('channels', 'stride'), [((8, 8), 1), ((8, 8), 2), ((8, 12), 1)])
def test_the_residual_block_is_that_of_resnet(channels, stride):
    """Parity with the basic block of mmpretrain's ResNet-18/34."""
    from mmpretrain.models.backbones.resnet import BasicBlock

    layers = Layer(*channels, stride), Layer(channels[1], channels[1])
    ours = trained(ResidualBlock(*layers)).double()
    down = None
    if not layers[0].keeps_shape:
        down = nn.Sequential(
            nn.Conv2d(*channels, 1, stride=stride, bias=False), nn.BatchNorm2d(channels[1])
        )
    theirs = BasicBlock(*channels, stride=stride, downsample=down).double().eval()
    names = {
        'layer_1.conv': 'conv1', 'layer_1.norm': 'bn1', 'layer_2.conv': 'conv2',
        'layer_2.norm': 'bn2', 'shortcut.conv': 'downsample.0', 'shortcut.norm': 'downsample.1',
    }  # fmt: skip
    renamed = {}
    for name, tensor in ours.state_dict().items():
        module, _, own = name.rpartition('.')
        renamed[f'{names[module]}.{own}'] = tensor
    theirs.load_state_dict(renamed, strict=True)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    ours.shortcut = nn.Sequential(ours.shortcut, nn.ReLU())  # negative control
    assert (ours(x) - theirs(x)).abs().max() > 1e-2


@every([dict(block=name) for name in VARIANTS])
def test_checkpointing_changes_neither_gradients_nor_statistics(kind):
    plain, saving = (DilatedRepVGG(EVEN, with_cp=with_cp, **kind) for with_cp in (False, True))
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 32, 32)
    for model in (plain, saving):
        model.train()(x)[-1].square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_squeeze_excitation_acts_in_every_variant_that_has_it():
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    blocks = [name for name in VARIANTS if name not in UNFUSIBLE]
    for block, place in itertools.product(blocks, ('se_layer', 'post_se')):
        arch = dict(EVEN, se_cfg=dict(ratio=2, divisor=1, after_act=place == 'post_se'))
        model = trained(DilatedRepVGG(arch, block=block, **DILATED)).double()
        fused, _ = deployed_copy(model, ['branches'])
        assert compare(model, fused, x).max_rel < 1e-10
        if block == 'repvgg':
            assert compare(model, deployed_copy(model)[0], x).max_rel < 1e-10  # every rewrite
        setattr(fused.stem, place, nn.Identity())
        assert compare(model, fused, x).max_rel > 1e-2


@pytest.mark.parametrize('after_act', [False, True])
def test_squeeze_excitation_before_and_after_the_activation(after_act):
    """Worked by hand: maps of one pixel, the squeeze of which is the pixel itself."""
    se_cfg = dict(ratio=2, divisor=1, after_act=after_act)
    block = RepVGGBlock(2, 2, se_cfg=se_cfg, deploy=True).eval()
    conv, se = block.branch_reparam, block.post_se if after_act else block.se_layer
    state = {
        conv.weight: [0.0] * 36, conv.bias: [2.0, -4.0],  # the output is (2, -4) for any input
        se.conv1.conv.weight: [1.0, 0.5], se.conv1.conv.bias: [0.0],
        se.conv2.conv.weight: [1.0, 1.0], se.conv2.conv.bias: [0.0, 0.0],
    }  # fmt: skip
    for parameter, values in state.items():
        parameter.data = torch.tensor(values).reshape(parameter.shape)
    # before: 2 - 4 / 2 = 0, the factors are sigmoid(0); after: relu gives (2, 0), the factors are
    # sigmoid(2)
    factor = torch.tensor(2.0 if after_act else 0.0).sigmoid()
    found = block(torch.randn(1, 2, 1, 1)).flatten()
    torch.testing.assert_close(found, torch.stack([2 * factor, 0 * factor]))


def test_the_default_is_the_full_block():
    torch.manual_seed(0)
    default = DilatedRepVGG(EVEN)
    torch.manual_seed(0)
    named = DilatedRepVGG(EVEN, block='repvgg', branches=['identity', '3x3', '1x1'])
    assert list(default.state_dict()) == list(named.state_dict())
    for a, b in zip(default.state_dict().values(), named.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        (dict(block='acnet'), "unknown block 'acnet'; choose from repvgg, identity_without_bn, "),
        (
            dict(branches=()),
            r"branches=\(\) of RepVGGBlock must hold '3x3' and may hold '1x1', 'id",
        ),
        (dict(branches=('1x1', 'identity')), "must hold '3x3'"),
        (dict(branches=('3x3', '5x5')), "may hold '1x1', 'identity', each once"),
        (dict(branches=('3x3', '3x3')), 'each once; by default the block has all'),
        (dict(branches='3x3'), "must hold '3x3'"),
        (
            dict(block='identity_without_bn', branches=('3x3', '1x1')),
            "of IdentityWithoutBN must hold '3x3', 'identity' and may hold '1x1'",
        ),
        (
            dict(block='diracnet', branches=('3x3', 'identity')),
            "of DiracNetLayer must hold '3x3' and may hold no other",
        ),
        (dict(block='trivial_reparam', branches=('3x3', '1x1')), 'may hold no other'),
        (dict(block='acb', branches=('3x3', '1x3')), "must hold '3x3', '1x3', '3x1' and"),
        (dict(block='acb', branches=('3x3', '1x1')), "must hold '3x3', '1x3', '3x1' and"),
        (
            dict(block='acb', deploy=True, with_cp=True),
            'with_cp=True has no effect on a fused block',
        ),
        (
            dict(block='residual_reorg', branches=('3x3', 'identity')),
            "has no effect on block='residual_reorg'",
        ),
        (
            dict(block='residual_reorg', arch=dict(EVEN, num_blocks=(2, 3, 4, 1))),
            'a stage of 3 layers cannot be paired',
        ),
        (
            dict(block='residual_reorg', arch=dict(EVEN, se_cfg=dict(ratio=2))),
            'no squeeze-excitation',
        ),
        (dict(block='residual_reorg', dilations=(1, 1, 0, 1)), 'dilation=0'),
        (dict(block='acb', norm_cfg=dict(type='GN', num_groups=2)), "'GN' cannot be fused"),
    ],
)
def test_what_cannot_be_built_says_what_can(kwargs, text):
    with pytest.raises(ValueError, match=text):
        DilatedRepVGG(**{'arch': EVEN, **kwargs})
