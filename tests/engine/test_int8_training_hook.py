"""Int8TrainingHook: what is rounded, what is saved, and what is refused."""

import copy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmseg_repvgg.checkpoint.loading import load_strictly
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.deploy.quantize.rounding import (
    RoundedConv2d,
    Scheme,
    round_convs,
    round_maps,
    round_weights,
)
from mmseg_repvgg.deploy.quantize.sensitivity import rank_layers
from mmseg_repvgg.engine import launch
from mmseg_repvgg.engine.int8_training_hook import Int8TrainingHook
from tests.common import randomise_batchnorms, runner_cfg

REWRITES = ['branches', 'batchnorm', 'pyramid']
PER_TENSOR = Scheme(per_tensor=True)


def fused_cfg(root, folder, trained, **changes):
    """A training of the fused form of tests.common's PSPNet."""
    cfg = runner_cfg(root, folder, load_from=str(trained), **changes)
    cfg.model.update(type='DeployedModel', of='mmseg.EncoderDecoder', rewrites=REWRITES)
    cfg.setdefault('custom_hooks', [])
    if 'custom_hooks' not in changes:
        cfg.custom_hooks = [dict(type='Int8TrainingHook', per_tensor=True)]
    cfg.optim_wrapper.optimizer.lr = 1e-3
    cfg.model.decode_head.dropout_ratio = cfg.model.auxiliary_head.dropout_ratio = 0
    return cfg


@pytest.fixture(scope='module')
def trained(scenes, tmp_path_factory):
    """A checkpoint in training form."""
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = randomise_batchnorms(MODELS.build(runner_cfg(scenes, 'work').model))
    path = tmp_path_factory.mktemp('trained') / 'trained.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def fused_model(trained):
    """The segmentor of fused_cfg, without the hook, in eval mode."""
    init_default_scope('mmseg')
    model = MODELS.build(fused_cfg('.', '.', trained).model)
    load_strictly(model, torch.load(trained)['state_dict'], 'trained.pth')
    return model


def test_the_rounded_conv_by_hand():
    conv = nn.Conv2d(1, 1, 1)
    with torch.no_grad():
        conv.weight.fill_(1.27 / 2)  # the largest: 127 steps of 0.005
        conv.bias.fill_(1)
    conv.__class__, conv.scheme = RoundedConv2d, PER_TENSOR
    x = torch.tensor([-51.0, 0, 51.3, 204]).view(1, 1, 2, 2).requires_grad_()  # steps of 1
    out = conv(x)
    expected = torch.tensor([-51.0, 0, 51, 204]).view(1, 1, 2, 2) * 0.635 + 1
    assert torch.allclose(out, expected)
    out.sum().backward()  # gradients as if nothing were rounded, but of the rounded values
    assert torch.allclose(x.grad, torch.full_like(x, 0.635))
    assert conv.weight.grad.item() == pytest.approx(204)
    assert conv.bias.grad.item() == 4


def test_rounding_passes_gradients_and_values_stay_on_the_grid():
    weight = torch.randn(4, 3, 3, 3).requires_grad_()
    for scheme in (Scheme(), PER_TENSOR, Scheme(weight_bits=7)):
        weight.grad = None
        rounded = round_weights(weight, scheme)
        rounded.sum().backward()
        assert torch.equal(weight.grad, torch.ones_like(weight))
        steps = 127 if scheme.weight_bits == 8 else 64
        dims = (0, 1, 2, 3) if scheme.per_tensor else (1, 2, 3)
        whole = rounded / weight.detach().abs().amax(dims, keepdim=True) * steps
        assert torch.allclose(whole, whole.round(), atol=1e-4)
        assert whole.abs().max().round() == steps
    x = torch.randn(2, 3, 4, 4).requires_grad_()
    round_maps(x, x.detach().amin(), x.detach().amax(), False).sum().backward()
    assert x.grad.sum() >= x.numel() - 2  # the extremes may round to outside the range


@torch.no_grad()
@pytest.mark.parametrize('scheme', [PER_TENSOR, Scheme(weight_bits=7, symmetric=True)])
def test_each_conv_rounds_as_in_the_simulation_of_the_export(trained, scheme):
    """Two ways to round: a dispatch mode with calibrated ranges, and the classes of the convs."""
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    metas = [dict(img_shape=(64, 64))]
    model = fused_model(trained)
    expected = model.encode_decode(images, metas)
    layers = rank_layers(model, [images], scheme, ['decode_head.conv_seg.weight'])
    names = round_convs(fused_model(trained), scheme)
    assert set(names) == {layer.name for layer in layers}
    for layer in layers[:2]:
        model = fused_model(trained)
        others = [name for name in names if name != layer.name]
        assert round_convs(model, scheme, others) == [layer.name]
        error = (model.encode_decode(images, metas) - expected).norm() / expected.norm()
        assert layer.error > 1e-3
        assert error.item() == pytest.approx(layer.error, rel=1e-3)


def test_training_learns_with_rounding_and_saves_plain_weights(scenes, trained, tmp_path):
    cfg = fused_cfg(scenes, tmp_path, trained)
    before = fused_model(trained).state_dict()
    runner = launch.train(cfg)
    convs = {n for n, m in runner.model.named_modules() if isinstance(m, RoundedConv2d)}
    kernels = {name.removesuffix('.weight') for name, t in before.items() if t.dim() == 4}
    assert kernels - convs == {
        'decode_head.conv_seg',
        'auxiliary_head.conv_seg',
        'auxiliary_head.convs.0.conv',
    }
    saved = torch.load(tmp_path / 'iter_4.pth', weights_only=False)['state_dict']
    assert {k: v.shape for k, v in saved.items()} == {k: v.shape for k, v in before.items()}
    assert all(not torch.equal(saved[name], before[name]) for name in saved)
    plain = fused_model(trained)
    load_strictly(plain, saved, 'iter_4.pth')
    assert not any(isinstance(m, RoundedConv2d) for m in plain.modules())


@pytest.mark.slow
def test_a_resumed_training_ends_with_the_same_weights(scenes, trained, tmp_path):
    ends = {}
    for name, stops in (('whole', (4,)), ('resumed', (2, 4))):
        for stop in stops:
            cfg = fused_cfg(scenes, tmp_path / name, trained)
            cfg.train_cfg.max_iters = stop
            cfg.default_hooks.checkpoint.interval = 2
            launch.train(cfg, resume=stop == 4 and len(stops) == 2)
        path = tmp_path / name / 'iter_4.pth'
        ends[name] = torch.load(path, weights_only=False)['state_dict']
    assert all(torch.equal(ends['whole'][k], v) for k, v in ends['resumed'].items())


@pytest.mark.slow
def test_validation_is_of_the_rounded_network_with_other_hooks(scenes, trained, tmp_path):
    """EMAHook's copy rounds as well, and RepVGGDeployHook finds nothing that would not be equal."""
    hooks = [dict(type='EMAHook'), dict(type='RepVGGDeployHook'), dict(type='Int8TrainingHook')]
    cfg = fused_cfg(scenes, tmp_path, trained, custom_hooks=hooks)
    seen = []
    runner = Runner.from_cfg(cfg)
    forward = RoundedConv2d._conv_forward

    def counted(self, *args):
        seen.append(torch.is_grad_enabled())
        return forward(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RoundedConv2d, '_conv_forward', counted)
        runner.train()
    convs = sum(isinstance(m, RoundedConv2d) for m in runner.model.modules())
    assert seen.count(True) == 4 * convs
    # 2 validations of 3 images, and in each the hook's comparison of both forms
    assert seen.count(False) == 2 * (3 + 2) * convs


@pytest.mark.slow
def test_the_test_of_a_config_with_the_hook_is_a_simulation(scenes, trained, tmp_path):
    with_hook = launch.test(fused_cfg(scenes, tmp_path / 'a', trained), str(trained))
    plain = launch.test(fused_cfg(scenes, tmp_path / 'b', trained, custom_hooks=[]), str(trained))
    assert with_hook.keys() == plain.keys() and with_hook != plain


@pytest.mark.parametrize(
    ('change', 'amp', 'text'),
    [
        (dict(load_from=None), False, 'name the trained or fused checkpoint in load_from'),
        (dict(custom_hooks=[]), False, 'Only the rounding of int8 is trained in fused form'),
        ({}, True, 'needs float32.*leave --amp out'),
    ],
)
def test_trainings_that_are_refused(scenes, trained, tmp_path, change, amp, text):
    cfg = fused_cfg(scenes, tmp_path, trained)
    cfg.merge_from_dict(change)
    with pytest.raises(ValueError, match=text):
        launch.train(Config(cfg.to_dict()), amp=amp)


@pytest.mark.parametrize(
    ('rewrites', 'in_float', 'text'),
    [
        (['branches'], [], r'the model still has \d+ BatchNorms \(decode_head'),
        ([*REWRITES, 'dilation'], [], 'not SubMapConv2d: leave .dilation. and .winograd. out'),
        ([*REWRITES, 'winograd'], [], 'not WinogradConv2d: leave'),
        (REWRITES, ['backbone.x'], r"in_float=\['backbone.x'\] are no convs of the model"),
    ],
)
def test_models_that_are_refused_stay_as_they_are(trained, rewrites, in_float, text):
    cfg = fused_cfg('.', '.', trained)
    cfg.model.rewrites = rewrites
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=text):
        round_convs(model, PER_TENSOR, in_float)
    assert [type(module) for module in model.modules()] == classes


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match='weight_bits=4 must be 7 or 8'):
        Int8TrainingHook(weight_bits=4)
    with pytest.raises(ValueError, match="in_float='backbone' must be a list"):
        Int8TrainingHook(in_float='backbone')


@torch.no_grad()
def test_exports_get_the_rounded_weights(scenes, trained):
    """And rounding them again, as a quantizer does, changes nothing."""
    model, _ = load_segmentor(fused_cfg(scenes, '.', trained), trained)
    plain, _ = load_segmentor(fused_cfg(scenes, '.', trained, custom_hooks=[]), trained)
    rounded, before = model.state_dict(), plain.state_dict()
    assert rounded.keys() == before.keys()
    assert not any(isinstance(module, RoundedConv2d) for module in model.modules())
    for name in ('backbone.stage_1.0.branch_reparam', 'decode_head.bottleneck.conv'):
        weight = rounded[f'{name}.weight']
        assert torch.equal(weight, round_weights(before[f'{name}.weight'], PER_TENSOR))
        assert torch.allclose(weight, round_weights(weight, PER_TENSOR), rtol=1e-6, atol=0)
        assert not torch.equal(weight, before[f'{name}.weight'])
        assert torch.equal(rounded[f'{name}.bias'], before[f'{name}.bias'])
    for name in ('decode_head.conv_seg.weight', 'auxiliary_head.convs.0.conv.weight'):
        assert torch.equal(rounded[name], before[name])
    images = torch.randn(1, 3, 64, 64)
    metas = [dict(img_shape=(64, 64))]
    logits = model.encode_decode(images, metas)
    round_convs(plain, PER_TENSOR)
    simulated = plain.encode_decode(images, metas)
    round_convs(model, PER_TENSOR)  # now only feature maps are rounded
    assert torch.allclose(model.encode_decode(images, metas), simulated, atol=1e-4)
    assert not torch.allclose(logits, simulated, atol=1e-4)


def test_copies_round_and_named_convs_do_not(trained):
    model = fused_model(trained)
    round_convs(model, PER_TENSOR, ['backbone.stem.branch_reparam'])
    assert type(model.backbone.stem.branch_reparam) is nn.Conv2d
    assert type(copy.deepcopy(model).decode_head.bottleneck.conv) is RoundedConv2d
