"""bfloat16 on the CPU: training, evaluation, fusing by way of float64, and where it is slow."""

import copy
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn

from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.engine import RepVGGDeployHook, launch, mixed_precision
from mmseg_repvgg.models import RepVGGBlock
from mmseg_repvgg.reparam import compare, deployed_copy
from mmseg_repvgg.reparam.equivalence import TOLERANCES
from tests.common import TINY, randomise_batchnorms, runner_cfg, segmentor_cfg

HALF = torch.bfloat16


@pytest.fixture
def segmentor():
    init_default_scope('mmseg')
    model = MODELS.build(segmentor_cfg(TINY, (8, 8, 16, 32, 64), strides=(2, 2, 1, 1)))
    model.init_weights()
    return model


def loss_of(model, x, labels):
    """Cross entropy of both heads, whose maps have an eighth of the image's size."""
    features = model.extract_feat(x)
    logits = [model.decode_head(features), model.auxiliary_head(features)]
    return sum(nn.functional.cross_entropy(out.float(), labels) for out in logits)


def batch():
    images = torch.randn(2, 3, 64, 64)
    # a rule that can be learnt: the class is whether the image is bright there
    return images, (nn.functional.avg_pool2d(images.mean(1), 8) > 0).long()


def train(model, x, labels, steps=15, autocast=False):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    model.train()
    for _ in range(steps):
        with torch.autocast('cpu', HALF, enabled=autocast):
            loss = loss_of(model, x, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize('way', ['autocast', 'weights'])
def test_training_and_evaluation_in_bfloat16(segmentor, way):
    images, labels = batch()
    reference = copy.deepcopy(segmentor)
    if way == 'weights':
        segmentor.to(HALF)
    x = images.to(HALF) if way == 'weights' else images
    losses = train(segmentor, x, labels, autocast=way == 'autocast')
    expected = train(reference, images, labels)
    assert losses[0] == pytest.approx(expected[0], rel=0.02)
    assert losses[-1] < 0.5 * losses[0]
    for name, parameter in segmentor.named_parameters():
        assert parameter.dtype == (HALF if way == 'weights' else torch.float32)
        assert parameter.isfinite().all(), name
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == parameter.dtype, name

    # evaluated in bfloat16 and in float32, the same weights give nearly the same logits
    segmentor.eval()
    single = copy.deepcopy(segmentor).float()
    with torch.no_grad():
        with torch.autocast('cpu', HALF, enabled=way == 'autocast'):
            found = segmentor.decode_head(segmentor.extract_feat(x))
        right = single.decode_head(single.extract_feat(images))
    assert found.dtype == HALF
    gap = (found.float() - right).abs().max() / right.abs().max()
    assert 0 < gap < TOLERANCES[HALF]
    assert (found.argmax(1) == right.argmax(1)).float().mean() > 0.95


def by_hand(block: RepVGGBlock, dtype: torch.dtype) -> torch.Tensor:
    """The fused kernel of equations 3 and 4, all arithmetic in ``dtype``."""
    kernel = torch.zeros(block.branch_3x3.conv.weight.shape, dtype=dtype)
    branches = [
        (block.branch_3x3.conv.weight, block.branch_3x3.norm),
        (block.branch_1x1.conv.weight, block.branch_1x1.norm),
        (torch.eye(kernel.shape[0])[:, :, None, None], block.branch_norm),
    ]
    for weight, norm in branches:
        scale = norm.weight.to(dtype) / (norm.running_var.to(dtype) + norm.eps).sqrt()
        scaled = weight.to(dtype) * scale[:, None, None, None]
        pad = (3 - weight.shape[-1]) // 2
        kernel = kernel + nn.functional.pad(scaled, [pad] * 4)
    return kernel.detach()


@pytest.mark.parametrize('dtype', [HALF, torch.float16])
def test_half_precision_is_fused_by_way_of_float64(dtype):
    block = randomise_batchnorms(RepVGGBlock(8, 8)).to(dtype)
    exact = by_hand(block, torch.float64).to(dtype)
    rounded_on_the_way = by_hand(block, dtype)  # negative control
    block.switch_to_deploy()
    assert block.branch_reparam.weight.dtype == dtype
    assert torch.equal(block.branch_reparam.weight, exact)
    assert not torch.equal(rounded_on_the_way, exact)


@pytest.mark.parametrize('rewrites', [['branches'], ['branches', 'batchnorm', 'dilation']])
def test_a_fused_half_precision_model_is_equal(segmentor, rewrites):
    model = randomise_batchnorms(segmentor).to(HALF)
    fused, _ = deployed_copy(model, rewrites)
    x = torch.randn(1, 3, 65, 49, dtype=HALF)
    assert 0 < compare(model, fused, x).max_rel < TOLERANCES[HALF]
    fused.backbone.stage_2[0].branch_reparam.weight.data.neg_()  # negative control
    assert compare(model, fused, x).max_rel > TOLERANCES[HALF]


# In mmengine's Runner: --amp, and validation under autocast with the deploy hook.


@HOOKS.register_module(force=True)
class Dtypes(Hook):
    """Notes the dtype in which the stem of what is trained and evaluated computes."""

    priority = 'LOW'  # after the deploy hook

    def __init__(self):
        self.seen = {'train': set(), 'val': set()}

    def _watch(self, model, mode):
        def note(module, inputs, output):
            if module.training == (mode == 'train'):  # not while both forms are compared
                self.seen[mode].add(output.dtype)

        model.backbone.stem.register_forward_hook(note)

    def before_train(self, runner):
        self._watch(runner.model, 'train')

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 1:  # the copy is made, and compared, with the first batch
            hook = next(h for h in runner.hooks if isinstance(h, RepVGGDeployHook))
            self._watch(hook._deployed[runner], 'val')


def amp_cfg(scenes, folder, **changes):
    hooks = [dict(type='RepVGGDeployHook'), dict(type='Dtypes')]
    cfg = runner_cfg(scenes, folder, custom_hooks=hooks, experiment_name=folder.name)
    cfg.merge_from_dict({'optim_wrapper.accumulative_counts': 2, **changes})
    return cfg


def losses_of(runner):
    return runner.message_hub.get_scalar('train/loss').data[0]


def dtypes_of(runner):
    return next(h for h in runner.hooks if isinstance(h, Dtypes)).seen


@pytest.mark.skipif(get_device() != 'cpu', reason='of training without a GPU')
def test_amp_trains_and_evaluates_in_bfloat16_on_the_cpu(scenes, tmp_path):
    runner = launch.train(amp_cfg(scenes, tmp_path / 'half', **{'val_cfg.fp16': True}), amp=True)
    assert dtypes_of(runner) == {'train': {HALF}, 'val': {HALF}}
    plain = launch.train(amp_cfg(scenes, tmp_path / 'full'))
    assert dtypes_of(plain) == {'train': {torch.float32}, 'val': {torch.float32}}
    assert losses_of(runner) == pytest.approx(losses_of(plain), rel=0.02)
    assert (losses_of(runner) != losses_of(plain)).any()
    saved = [
        torch.load(tmp_path / name / 'iter_4.pth', weights_only=False) for name in ('half', 'full')
    ]
    assert saved[0]['state_dict'].keys() == saved[1]['state_dict'].keys()
    assert {t.dtype for t in saved[0]['state_dict'].values()} == {torch.float32, torch.int64}
    assert saved[0]['optimizer'].keys() == saved[1]['optimizer'].keys()

    # either is resumed as the other; and what a GPU saved, with its loss scale
    saved[0]['optimizer']['loss_scaler'] = dict(scale=65536.0)
    torch.save(saved[0], tmp_path / 'gpu.pth')
    for source, amp in (('half/iter_4.pth', False), ('full/iter_4.pth', True), ('gpu.pth', True)):
        cfg = amp_cfg(scenes, tmp_path / f'more {source[:4]}', **{'train_cfg.max_iters': 5})
        more = launch.train(cfg, resume=str(tmp_path / source), amp=amp)
        assert more.iter == 5
        assert dtypes_of(more)['train'] == {HALF if amp else torch.float32}


@pytest.mark.skipif(get_device() != 'cpu', reason='of training without a GPU')
def test_amp_settings_that_need_a_gpu_are_named(scenes, tmp_path):
    gpu = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.loss_scale': 512.0}
    with pytest.raises(
        ValueError, match=r'AmpOptimWrapper, which needs a GPU; on the CPU add --am'
    ):
        launch.train(amp_cfg(scenes, tmp_path / 'a', **gpu))
    half = gpu | {'optim_wrapper.dtype': 'float16'}
    with pytest.raises(ValueError, match=r"dtype='float16' needs a GPU.*mmseg_repvgg.doctor says"):
        launch.train(amp_cfg(scenes, tmp_path / 'b', **half), amp=True)
    other = {'optim_wrapper.type': 'DeepSpeedOptimWrapper'}
    with pytest.raises(ValueError, match="cannot be combined with optim_wrapper 'DeepSpeed"):
        launch.train(amp_cfg(scenes, tmp_path / 'c', **other), amp=True)
    # with --amp the same config trains, in bfloat16 and without a loss scale
    short = {'train_cfg.max_iters': 1}
    runner = launch.train(amp_cfg(scenes, tmp_path / 'd', **gpu, **short), amp=True)
    assert type(runner.optim_wrapper).__name__ == 'CpuAmpOptimWrapper'
    assert dtypes_of(runner)['train'] == {HALF}


def test_a_half_precision_checkpoint_is_fused_through_float64(scenes, tmp_path):
    """What deploy_fuse writes of float16 weights is their exact kernel, rounded once."""
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, tmp_path / 'work')
    model = randomise_batchnorms(MODELS.build(cfg.model)).half()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'half.pth')
    fuse_checkpoint(cfg, tmp_path / 'half.pth', tmp_path / 'fused.pth', num_images=0)
    fused = torch.load(tmp_path / 'fused.pth', weights_only=True)['state_dict']
    block = model.backbone.stage_1[1]
    exact, rounded = by_hand(block, torch.float64), by_hand(block, torch.float16)
    found = fused['backbone.stage_1.1.branch_reparam.weight']
    assert torch.equal(found, exact.to(found.dtype))
    assert not torch.equal(found, rounded.to(found.dtype))  # negative control


# Where bfloat16 is slow.


@pytest.fixture
def plain_loops(monkeypatch):
    """As on a CPU without instructions for bfloat16."""
    monkeypatch.setattr(mixed_precision, 'has_fast_convs', lambda: False)


@pytest.mark.skipif(get_device() != 'cpu', reason='of training without a GPU')
@pytest.mark.parametrize('way', ['amp', 'validation'])
def test_slow_bfloat16_is_warned_of_once(plain_loops, scenes, tmp_path, way):
    cfg = amp_cfg(scenes, tmp_path, **({'val_cfg.fp16': True} if way == 'validation' else {}))
    with pytest.warns(UserWarning, match=r'no instructions for bfloat16.*Leave mixed') as warned:
        launch.train(cfg, amp=way == 'amp')
    assert len([w for w in warned if 'no instructions' in str(w.message)]) == 1


@pytest.mark.filterwarnings('error:this CPU has no instructions')
def test_where_it_is_fast_nothing_is_warned_of(monkeypatch):
    monkeypatch.setattr(mixed_precision, 'has_fast_convs', lambda: True)
    mixed_precision.warn_of_slow_half()


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ('x86_64', 'AMD64'), reason='the limits are of x86')
def test_a_cpu_limited_to_avx2_is_told_for_real():
    """PyTorch and oneDNN take these two limits from the environment."""
    code = 'from mmseg_repvgg.engine import mixed_precision; mixed_precision.warn_of_slow_half()'
    for limits, told in (
        (dict(ATEN_CPU_CAPABILITY='avx2', ONEDNN_MAX_CPU_ISA='AVX2'), True),
        ({}, not mixed_precision.has_fast_convs()),
    ):
        done = subprocess.run(
            [sys.executable, '-c', code],
            env=os.environ | limits | dict(PYTHONPATH=os.pathsep.join(sys.path)),
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert ('no instructions for bfloat16' in done.stderr) == told
