"""RepVGGBlock: its forward pass, checkpointing and form."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F

from mmseg_repvgg.models import RepVGGBlock
from tests.common import randomise_batchnorms


def by_hand(block: RepVGGBlock, x: torch.Tensor, identity: bool) -> torch.Tensor:
    """Equation 1 and ReLU, written with torch functions."""

    def bn(t, norm):
        shape = (1, -1, 1, 1)
        centred = (t - norm.running_mean.view(shape)) / (norm.running_var + norm.eps).sqrt().view(
            shape
        )
        return centred * norm.weight.view(shape) + norm.bias.view(shape)

    w3, w1 = block.branch_3x3.conv.weight, block.branch_1x1.conv.weight
    common = dict(stride=block.stride, groups=block.groups)
    y = bn(
        F.conv2d(x, w3, padding=block.dilation, dilation=block.dilation, **common),
        block.branch_3x3.norm,
    )
    y = y + bn(F.conv2d(x, w1, **common), block.branch_1x1.norm)
    return (y + bn(x, block.branch_norm) if identity else y).relu()


@pytest.mark.parametrize(
    ('channels', 'stride', 'dilation', 'groups', 'identity'),
    [
        ((8, 8), 1, 1, 1, True),
        ((8, 8), 1, 4, 2, True),
        ((8, 12), 1, 2, 1, False),
        ((8, 8), 2, 1, 4, False),
        ((8, 8), 2, 3, 1, False),
    ],
)
def test_the_forward_pass_is_equation_1(channels, stride, dilation, groups, identity):
    block = RepVGGBlock(*channels, stride=stride, dilation=dilation, groups=groups)
    randomise_batchnorms(block).double()
    x = torch.randn(2, 8, 13, 11, dtype=torch.float64)
    expected = by_hand(block, x, identity)
    assert expected.shape[2:] == (-(-13 // stride), -(-11 // stride))
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)
    if identity:  # negative control: without the identity branch the formula is another one
        assert not torch.allclose(block(x), by_hand(block, x, identity=False), atol=1e-2)


@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_checkpointing_changes_neither_gradients_nor_statistics(norm):
    torch.manual_seed(0)
    plain = RepVGGBlock(6, 6, se_cfg=dict(ratio=2, divisor=1), norm_cfg=dict(type=norm))
    saving = RepVGGBlock(
        6, 6, se_cfg=dict(ratio=2, divisor=1), norm_cfg=dict(type=norm), with_cp=True
    )
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 6, 9, 9)
    for block in (plain, saving):
        for _ in range(2):
            block(x).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, a), b in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b), name
    assert plain.branch_3x3.norm.num_batches_tracked == 2


@pytest.mark.parametrize('form', ['training', 'fused'])
@pytest.mark.parametrize('place', ['branch_3x3', 'branch_3x3.norm', 'branch_norm', 'act'])
def test_hooks_and_replaced_forwards_act_as_in_any_module(form, place):
    """As accelerate, LoRA and pruning do it; what a hook was given is not overwritten."""
    block = randomise_batchnorms(RepVGGBlock(8, 8)).train()
    if form == 'fused':
        block.eval().switch_to_deploy()
        place = place if place == 'act' else 'branch_reparam'
    module, seen, calls = block.get_submodule(place), [], []
    module.register_forward_hook(lambda module, args, out: seen.append((out, out.clone())))
    module.register_full_backward_hook(lambda *args: calls.append('backward'))
    forward = module.forward
    module.forward = lambda x: (calls.append('forward'), forward(x))[1]
    x = torch.randn(2, 8, 9, 7, requires_grad=True)
    block(x).sum().backward()
    assert calls == ['forward', 'backward']
    ((out, before),) = seen
    assert torch.equal(out, before)


@pytest.mark.parametrize('settings', [{}, dict(recompute_1x1=True), dict(with_cp=True)])
@pytest.mark.parametrize('training', [True, False])
def test_it_is_traced_compiled_and_exported(settings, training):
    from torch.fx.experimental.proxy_tensor import make_fx

    block = randomise_batchnorms(RepVGGBlock(8, 8, **settings)).train(training)
    x = torch.randn(2, 8, 9, 7)

    def make_fx_run(block):
        # with gradients PyTorch's checkpointing itself refuses make_fx
        with torch.no_grad() if settings else nullcontext():
            return make_fx(block)(x)(x)

    expected = copy.deepcopy(block)(x)
    for name, run in {
        'fx': lambda block: torch.fx.symbolic_trace(block)(x),
        'compile': lambda block: torch.compile(block, backend='aot_eager', fullgraph=True)(x),
        'make_fx': make_fx_run,
        'export': lambda block: torch.export.export(block, (x,)).module()(x),
    }.items():
        found = run(copy.deepcopy(block))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


def test_the_equivalent_kernel_is_differentiable_as_in_the_authors_code():
    block = randomise_batchnorms(RepVGGBlock(4, 4))
    kernel, bias = block.get_equivalent_kernel_bias()
    (kernel.square().sum() + bias.square().sum()).backward()
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    # by hand for the BatchNorm of the identity: only its own channel's centre tap and bias
    norm = block.branch_norm
    inverse = (norm.running_var + norm.eps).rsqrt()
    centre = kernel.diagonal(dim1=0, dim2=1)[1, 1]
    by_hand = 2 * (centre - bias * norm.running_mean) * inverse
    torch.testing.assert_close(norm.weight.grad, by_hand.detach().float())


def test_a_frozen_block_stays_frozen_when_fused():
    block = randomise_batchnorms(RepVGGBlock(4, 4)).requires_grad_(False)
    block.switch_to_deploy()
    assert not any(p.requires_grad for p in block.parameters())


def test_a_batchnorm_without_bias():
    block = randomise_no_bias(RepVGGBlock(8, 8, norm_cfg=dict(type='BN', bias=False)))
    x = torch.randn(2, 8, 9, 7)
    block.train()(x).sum().backward()
    expected = block.eval()(x)
    block.switch_to_deploy()
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def randomise_no_bias(block):
    for norm in (m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        assert norm.bias is None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    return block


def test_squeeze_excitation_equals_mmpretrains():
    from mmpretrain.models.utils import SELayer

    from mmseg_repvgg.models.squeeze_excitation import SqueezeExcitation

    for channels, cfg in (
        (40, dict(ratio=16, divisor=1)),
        (48, dict(ratio=4, divisor=8)),
        (40, dict(ratio=2, divisor=8)),
        (176, dict(ratio=16, divisor=8)),
    ):
        ours, theirs = SqueezeExcitation(channels, **cfg), SELayer(channels, **cfg)
        theirs.load_state_dict(ours.state_dict(), strict=True)
        x = torch.randn(2, channels, 5, 7)
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        (dict(stride=0), 'stride=0 of a RepVGG block must be an integer, at least 1'),
        (dict(dilation=0), 'dilation=0'),
        (dict(groups=3), 'groups=3 must divide the channels of the block, 8 and 8'),
        (
            dict(norm_cfg=dict(type='GN', num_groups=2)),
            "'GN' cannot be fused into a conv; use 'BN'",
        ),
        (dict(with_cp=True, deploy=True), 'with_cp=True has no effect on a fused block'),
    ],
)
def test_arguments_that_cannot_act_raise(kwargs, text):
    with pytest.raises(ValueError, match=text):
        RepVGGBlock(8, 8, **kwargs)


def test_a_fused_block_refuses_to_train():
    block = RepVGGBlock(4, 4, deploy=True)
    with pytest.raises(RuntimeError, match=r'call model.eval\(\) first. To train, build it with'):
        block(torch.randn(1, 4, 5, 5))
    assert block.eval()(torch.randn(1, 4, 5, 5)).shape == (1, 4, 5, 5)


def test_a_fused_block_has_the_order_of_one_that_is_built_fused():
    """The first conv of a fused backbone is the one that reads the images."""
    se_cfg = dict(ratio=2, divisor=1)
    block = RepVGGBlock(4, 4, se_cfg=se_cfg)
    block.switch_to_deploy()
    built = RepVGGBlock(4, 4, se_cfg=se_cfg, deploy=True)
    assert list(block.state_dict()) == list(built.state_dict())
