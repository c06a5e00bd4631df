"""DilatedRepVGG: the contract that every architecture keeps."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.models import ARCHS, DilatedRepVGG
from tests.common import TINY, randomise_batchnorms

# built in full only in the slow tests; the others differ from these in width alone
QUICK = ['A0', 'B1g4']
EVERY = [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ARCHS]


@pytest.mark.parametrize('name', EVERY)
def test_features_gradients_and_outputs_of_every_architecture(name):
    model = DilatedRepVGG(name, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)).train()
    assert model.out_channels == ARCHS[name].widths[1:]
    features = model(torch.randn(2, 3, 49, 64))
    sizes = [tuple(f.shape) for f in features]
    strides = [(13, 16), (7, 8), (7, 8), (7, 8)]  # of 49x64, output strides 4, 8, 8, 8, rounded up
    assert sizes == [(2, c, *hw) for c, hw in zip(model.out_channels, strides, strict=True)]
    sum(f.mean() for f in features).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, f'No gradient for {parameter_name}'
        assert parameter.grad.isfinite().all(), f'NaN gradient for {parameter_name}'


def test_paper_full_and_fast_dilations_reach_the_convs():
    def per_layer(model):
        return [[b.branch_3x3.conv.dilation[0] for b in stage] for stage in model.stages]

    full = DilatedRepVGG('B0', strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert per_layer(full) == [[1] * 4, [1] * 6, [2] * 16, [4]]
    fast = DilatedRepVGG('B0', strides=(2, 2, 1, 1), dilations=(1, 1, [1] * 12 + [2] * 4, 4))
    assert per_layer(fast) == [[1] * 4, [1] * 6, [1] * 12 + [2] * 4, [4]]
    odd = DilatedRepVGG(TINY, strides=(1, 2, 1, 2), dilations=(1, (3, 1, 2), (1, 5, 1), 2))
    assert per_layer(odd) == [[1, 1], [3, 1, 2], [1, 5, 1], [2]]
    for model in (full, fast, odd):  # the same dilation in fused form, the 1x1 branch without
        assert {b.branch_1x1.conv.padding for s in model.stages for b in s} == {(0, 0)}
        before = per_layer(model)
        model.switch_to_deploy()
        assert [[b.branch_reparam.dilation[0] for b in s] for s in model.stages] == before
    x = torch.randn(1, 3, 64, 64)
    assert [f.shape[-1] for f in odd.eval()(x)] == [32, 16, 16, 8]


def test_it_is_found_from_both_scopes_by_its_plain_name():
    import mmpretrain.registry
    import mmseg.registry

    cfg = dict(type='DilatedRepVGG', arch=TINY)
    for registry in (mmseg.registry.MODELS, mmpretrain.registry.MODELS, MODELS):
        assert type(registry.build(dict(cfg))) is DilatedRepVGG
    for scope in ('mmseg', 'mmpretrain'):
        init_default_scope(scope)
        assert type(MODELS.build(dict(cfg))) is DilatedRepVGG
    assert mmpretrain.registry.MODELS.get('RepVGG').__module__.startswith('mmpretrain.')


def test_built_fused_it_takes_the_weights_of_a_fused_one():
    torch.manual_seed(0)
    for arch in (TINY, dict(TINY, se_cfg=dict(ratio=2, divisor=1))):
        trained = randomise_batchnorms(DilatedRepVGG(arch))
        x = torch.randn(1, 3, 40, 40)
        expected = trained(x)
        trained.switch_to_deploy()
        fused = DilatedRepVGG(arch, deploy=True).eval()
        fused.load_state_dict(trained.state_dict(), strict=True)
        for a, b in zip(fused(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert all(p.requires_grad for p in fused.parameters())
        convs = [m for m in fused.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert len(convs) == 10
        assert not any(isinstance(m, nn.BatchNorm2d) for m in fused.modules())


def test_frozen_stages_and_norm_eval_survive_train():
    model = DilatedRepVGG(TINY, frozen_stages=2)
    assert model.train() is model
    frozen = [model.stem, model.stage_1, model.stage_2]
    assert not any(p.requires_grad for m in frozen for p in m.parameters())
    assert all(p.requires_grad for p in model.stage_3.parameters())
    assert not any(m.training for f in frozen for m in f.modules())
    assert model.stage_3.training
    norms = [
        m
        for m in DilatedRepVGG(TINY, norm_eval=True).train().modules()
        if isinstance(m, nn.BatchNorm2d)
    ]
    assert norms
    assert not any(n.training for n in norms)


def test_syncbn_trains_and_fuses_on_cpu():
    model = DilatedRepVGG(TINY, norm_cfg=dict(type='SyncBN', requires_grad=True)).train()
    x = torch.randn(2, 3, 64, 64)
    model(x)[-1].sum().backward()
    randomise_batchnorms(model)
    expected = model(x)[-1]
    model.switch_to_deploy()
    torch.testing.assert_close(model(x)[-1], expected, rtol=1e-4, atol=1e-4)


def test_with_cp_and_in_channels_act():
    torch.manual_seed(0)
    plain = DilatedRepVGG(TINY, in_channels=5).train()
    saving = DilatedRepVGG(TINY, in_channels=5, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 32, 32)
    for model in (plain, saving):
        model(x)[-1].square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert torch.equal(p.grad, q[1].grad), name
    assert torch.equal(
        plain.stem.branch_3x3.norm.running_var, saving.stem.branch_3x3.norm.running_var
    )


def test_pretrained_loads_a_classifiers_checkpoint(tmp_path):
    source = randomise_batchnorms(DilatedRepVGG(TINY))
    state = {f'backbone.{k}': v for k, v in source.state_dict().items()}
    torch.save(dict(state_dict=state | {'head.fc.weight': torch.ones(2, 2)}), tmp_path / 'c.pth')
    for kwargs in (
        dict(pretrained=str(tmp_path / 'c.pth')),
        dict(
            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'c.pth'), prefix='backbone.')
        ),
    ):
        model = DilatedRepVGG(TINY, **kwargs)
        model.init_weights()
        for name, value in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ('kwargs', 'text'),
    [
        (dict(arch='C1'), "unknown RepVGG arch 'C1'"),
        (dict(strides=(2, 2)), r'strides=\(2, 2\) has 2 values; 4 stages need 4'),
        (dict(dilations=(1, 1, 2)), 'dilations=.* has 3 values; 4 stages need 4'),
        (dict(dilations=(1, (1, 2), 1, 1)), r'dilations\[1\]=\(1, 2\) has 2 values; stage_2 has 3'),
        (dict(dilations=(1, 1, 0, 1)), 'dilation=0'),
        (
            dict(out_indices=(0, 4)),
            r'\(0, 4\) must be increasing stage numbers from 0 to 3',
        ),
        (dict(out_indices=()), 'must be increasing stage numbers'),
        (dict(out_indices=(3, 1)), 'must be increasing stage numbers'),
        (dict(out_indices=(0, 1)), 'leave the stages after 1 without effect; give num_stages=2'),
        (dict(num_stages=5), r'num_stages=5 must be in 1..4'),
        (dict(frozen_stages=5), r'frozen_stages=5 must lie in -1..4'),
        (dict(deploy=True, frozen_stages=1), 'have no effect on a fused backbone'),
        (dict(deploy=True, norm_eval=True), 'have no effect on a fused backbone'),
        (dict(deploy=True, with_cp=True), 'has no effect on a fused block'),
        (dict(pretrained='a.pth', init_cfg=dict(type='Kaiming')), 'both given; keep one'),
        (dict(norm_cfg=dict(type='LN')), 'cannot be fused into a conv'),
    ],
)
def test_wrong_arguments_say_what_is_allowed(kwargs, text):
    with pytest.raises(ValueError, match=text):
        DilatedRepVGG(**{'arch': TINY, **kwargs})


def test_fewer_stages_equal_the_beginning_of_all():
    whole = randomise_batchnorms(DilatedRepVGG(TINY))
    part = DilatedRepVGG(TINY, num_stages=2, strides=(2, 2), dilations=(1, 1), out_indices=(0, 1))
    state = {k: v for k, v in whole.state_dict().items() if k in part.state_dict()}
    part.load_state_dict(state, strict=True)
    x = torch.randn(1, 3, 32, 32)
    for a, b in zip(part.eval()(x), whole(x)[:2], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    'form', ['training', pytest.param('evaluated', marks=pytest.mark.slow), 'fused']
)
def test_it_is_traced_compiled_and_exported(form):
    from torch.fx.experimental.proxy_tensor import make_fx

    model = randomise_batchnorms(DilatedRepVGG(TINY, strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4)))
    model.train(form == 'training')
    if form == 'fused':
        model.switch_to_deploy()
    x = torch.randn(2, 3, 64, 48)
    expected = copy.deepcopy(model)(x)
    for name, run in {
        'fx': lambda model: torch.fx.symbolic_trace(model)(x),
        'compile': lambda model: torch.compile(model, backend='aot_eager', fullgraph=True)(x),
        'make_fx': lambda model: make_fx(model)(x)(x),
        'export': lambda model: torch.export.export(model, (x,)).module()(x),
    }.items():
        found = run(copy.deepcopy(model))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=name)


def test_what_stands_on_fx_works():
    from mmengine.model.efficient_conv_bn_eval import (
        turn_on_efficient_conv_bn_eval_for_single_model,
    )
    from torchvision.models.feature_extraction import create_feature_extractor

    model = randomise_batchnorms(DilatedRepVGG(TINY))
    x = torch.randn(1, 3, 64, 48)
    expected = model(x)
    (features,) = create_feature_extractor(model, ['stage_2'])(x).values()
    torch.testing.assert_close(features, expected[1])
    turn_on_efficient_conv_bn_eval_for_single_model(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('form', ['training', 'fused'])
def test_mmengine_counts_its_complexity(form):
    from mmengine.analysis import get_model_complexity_info
    from mmpretrain.models import RepVGG

    model = DilatedRepVGG('A0', out_indices=(3,)).eval()
    theirs = RepVGG('A0', out_indices=(3,))
    theirs.eval()  # which returns None
    expected = get_model_complexity_info(theirs, (3, 64, 64))
    if form == 'fused':
        model.switch_to_deploy()
    found = get_model_complexity_info(model, (3, 64, 64))
    if form == 'training':
        assert found['flops'] == expected['flops']
    else:  # one conv a block
        assert found['flops'] < expected['flops']
    assert not hasattr(model.stem, 'branch_norm') or form == 'training'
