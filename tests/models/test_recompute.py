"""Recomputing the 1x1 branch: what is kept, and equal gradients and statistics."""

import copy
import itertools
from contextlib import nullcontext

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from mmseg_repvgg.benchmark.training import kept_bytes
from mmseg_repvgg.models import DilatedRepVGG, RepVGGBlock, recomputation
from tests.common import TINY

GEOMETRIES = [
    dict(),
    dict(groups=2, dilation=2),
    dict(stride=2),
    dict(out_channels=12),
    dict(se_cfg=dict(ratio=2, divisor=1)),
    dict(norm_cfg=dict(type='SyncBN')),
    dict(act_cfg=dict(type='GELU')),
]


def pair(kind=RepVGGBlock, dtype=torch.float32, **settings):
    """A block that keeps everything, and one of the same weights that recomputes."""
    settings = dict(dict(in_channels=8, out_channels=8), **settings)
    torch.manual_seed(0)
    kept, saving = (kind(**settings, recompute_1x1=choice) for choice in (False, True))
    saving.load_state_dict(kept.state_dict())
    x = torch.randn(3, 8, 9, 7, dtype=dtype)
    return kept.to(dtype).train(), saving.to(dtype).train(), x


def gradients(module, x, run=lambda module, x: module(x)):
    """Of the input and every parameter, for a loss that is not linear in the output."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    run(module, x).double().square().sum().backward()
    return [x.grad, *(p.grad for p in module.parameters())]


def error(ours, theirs):
    return max(
        ((a - b).norm() / b.norm().clamp(min=1e-30)).item()
        for a, b in zip(ours, theirs, strict=True)
    )


def kept_maps(module, x):
    """How many maps of the output's size are kept besides the input; vectors aside."""
    kept, out = kept_bytes(module, x)
    return round(kept / out.nbytes, 1)


def test_two_maps_are_kept_where_mmpretrains_block_keeps_three():
    from mmpretrain.models.backbones.repvgg import RepVGGBlock as Theirs

    kept, saving, x = pair()
    theirs = Theirs(8, 8)
    theirs.load_state_dict(saving.state_dict())
    x.requires_grad_()
    # mmpretrain's: outputs of both convs and of the ReLU, which is the next block's input
    assert kept_maps(theirs, x) == 3
    assert kept_maps(kept, x) == 3  # negative control
    assert kept_maps(saving, x) == 2
    assert kept_bytes(saving, x)[0] <= 0.75 * kept_bytes(theirs, x)[0]
    assert error(gradients(saving, x.detach()), gradients(kept, x.detach())) < 1e-5
    named = dict(theirs.named_parameters())
    gradients(theirs, x.detach())
    pairs = [(p.grad, named[name].grad) for name, p in saving.named_parameters()]
    assert error(*zip(*pairs, strict=True)) < 1e-5


def test_the_backward_pass_works_on_tensors_without_memory():
    _, saving, x = pair()
    x = x.to('meta').requires_grad_()
    saving.to('meta')(x).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize('settings', GEOMETRIES, ids=str)
def test_gradients_and_statistics_are_those_of_the_plain_block(settings):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        kept, saving, x = pair(dtype=dtype, **settings)
        assert error(gradients(saving, x), gradients(kept, x)) <= tolerance
        for (name, a), b in zip(kept.named_buffers(), saving.buffers(), strict=True):
            assert torch.equal(a, b), name
        assert saving.branch_1x1.norm.num_batches_tracked == 1


def test_statistics_that_count_a_batch_twice_are_noticed(monkeypatch):
    """Negative control of the comparisons here."""
    kept, saving, x = pair()
    monkeypatch.setattr(recomputation, '_FrozenStatistics', lambda module: nullcontext())
    gradients(saving, x)
    gradients(kept, x)
    assert saving.branch_1x1.norm.num_batches_tracked == 2
    ours, theirs = (m.branch_1x1.norm.running_mean for m in (saving, kept))
    assert not torch.allclose(ours, theirs)


@pytest.mark.parametrize('name', ['repvgg', 'identity_without_bn', 'relu_in_branches'])
def test_variants_with_a_1x1_branch_recompute_it(name):
    plain, saving = (
        DilatedRepVGG(TINY, block=name, recompute_1x1=choice) for choice in (False, True)
    )
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(4, 3, 48, 48)
    grads = [gradients(model, x, lambda m, x: m(x)[-1]) for model in (saving, plain)]
    assert error(*grads) < 1e-5
    assert kept_bytes(saving, x)[0] < kept_bytes(plain, x)[0]


def no_training(module):
    return module.eval()


def norms_in_eval_mode(module):
    module.branch_1x1.norm.eval()
    return module


def frozen_kernel(module):
    module.branch_1x1.conv.weight.requires_grad_(False)
    return module


def of_a_copy(module):
    return copy.deepcopy(module)


def within_autocast(module, x):
    with torch.autocast('cpu', dtype=torch.bfloat16):
        return module(x)


def checkpointed(module, x):
    return checkpoint(module, x, use_reentrant=False)


def checkpointed_by_reentering(module, x):
    return checkpoint(module, x, use_reentrant=True)


@pytest.mark.parametrize('state', [no_training, norms_in_eval_mode, frozen_kernel, of_a_copy])
@pytest.mark.parametrize(
    'run', [within_autocast, checkpointed, checkpointed_by_reentering], ids=lambda f: f.__name__
)
def test_it_works_in_every_state_and_under_every_wrapper(state, run):
    kept, saving, x = (thing if torch.is_tensor(thing) else state(thing) for thing in pair())
    for how in (run, lambda module, x: module(x)):
        ours, theirs = ([g for g in gradients(m, x, how) if g is not None] for m in (saving, kept))
        assert len(ours) == len(theirs) >= 8
        assert error(ours, theirs) < 1e-5


def test_a_backward_pass_within_autocast_computes_in_the_dtype_of_the_forward_pass():
    kept, saving, x = pair()
    found = []
    for module in (saving, kept):
        out = module(x)
        with torch.autocast('cpu', dtype=torch.bfloat16):
            out.square().sum().backward()
        found.append([p.grad for p in module.parameters()])
    assert error(*found) < 1e-5


def test_without_gradients_nothing_is_done():
    kept, saving, x = pair()
    saving.requires_grad_(False)
    kept.requires_grad_(False)
    assert torch.equal(saving(x), kept(x))  # a frozen block that trains its statistics
    with torch.inference_mode():
        assert torch.equal(saving.eval()(x), kept.eval()(x))


def test_the_graph_may_be_used_twice_and_differentiated_twice():
    kept, saving, x = pair(dtype=torch.float64, act_cfg=dict(type='GELU'))
    found = []
    for module in (saving, kept):
        inputs = x.clone().requires_grad_()
        out = module(inputs).square().sum()
        wanted = [inputs, *module.parameters()]
        out.backward(retain_graph=True)
        first = torch.autograd.grad(out, wanted, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), wanted)
        found.append([*first, *second])
        with pytest.raises(RuntimeError, match='backward through the graph a second time'):
            out.backward()
    assert error(*found) < 1e-10


@pytest.mark.slow
def test_a_compiled_block_trains():
    kept, saving, x = pair()
    compiled = torch.compile(saving, backend='aot_eager', fullgraph=True)
    ours = gradients(saving, x, lambda module, x: compiled(x))
    assert error(ours, gradients(kept, x)) < 1e-5


def worker(rank, choice, results):
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    torch.set_num_threads(1)
    distributed.init_process_group('gloo', rank=rank, world_size=2)
    torch.manual_seed(0)
    block = RepVGGBlock(8, 8, recompute_1x1=choice)
    ddp = DistributedDataParallel(block)
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(rank))
    for _ in range(2):
        ddp(x).square().sum().backward()
    torch.save([p.grad for p in block.parameters()], f'{results}/{choice}-{rank}.pth')
    distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_training_gives_the_same_gradients(tmp_path, monkeypatch):
    import socket

    for choice in (True, False):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            monkeypatch.setenv('MASTER_PORT', str(probe.getsockname()[1]))
        monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')
        torch.multiprocessing.spawn(worker, (choice, str(tmp_path)), nprocs=2)
    names = [f'{choice}-{rank}' for choice, rank in itertools.product((True, False), (0, 1))]
    ours, other, theirs, _ = (torch.load(tmp_path / f'{name}.pth') for name in names)
    assert error(ours, theirs) < 1e-5
    assert error(ours, other) == 0  # both processes have the sum


@pytest.mark.parametrize(
    ('settings', 'text'),
    [
        (dict(recompute_1x1='auto'), "recompute_1x1='auto' must be True or False"),
        (dict(deploy=True), 'has no effect on a fused block of RepVGGBlock'),
        (dict(with_cp=True), 'with_cp=True recomputes the 1x1 branch already'),
        (dict(branches=('3x3', 'identity')), r"has no effect on branches=\('3x3', 'identity'\)"),
        (dict(block='acb'), r"no effect on branches=\('3x3', '1x3', '3x1'\) of AsymmetricConv"),
        (dict(block='post_addition_bn'), 'PostAdditionBN: there is no 1x1 conv with a BatchNorm'),
        (dict(block='residual_reorg', arch=dict(TINY, num_blocks=(2, 2, 2, 1))), 'no branches'),
    ],
)
def test_a_choice_that_cannot_act_is_refused(settings, text):
    with pytest.raises(ValueError, match=text):
        DilatedRepVGG(**{'arch': TINY, 'recompute_1x1': True, **settings})
