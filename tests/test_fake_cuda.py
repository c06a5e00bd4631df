"""The code paths of a GPU, traced without one: tensors have a device, shape and dtype but no data.

PyTorch's FakeTensorMode raises, as CUDA would, where tensors of two devices or dtypes meet. What
the kernels compute is not tested here.
"""

import copy
import logging
from contextlib import nullcontext

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmseg.structures import SegDataSample
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.passes import move_to_device_pass
from torch.nn.modules.batchnorm import _BatchNorm

import mmseg_repvgg.accel  # noqa: F401
from mmseg_repvgg.engine.deploy_hook import RepVGGDeployHook
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import REWRITES, deployed_copy, rewrites
from mmseg_repvgg.reparam.equivalence import compare
from mmseg_repvgg.reparam.rewrites import default_names
from tests.common import TINY, randomise_batchnorms, runner_cfg

PAPER = ('branches', 'batchnorm')
MORE = (*PAPER, 'dilation', 'pyramid')
SIZE = (65, 97)  # neither dilation divides the map of stride 8


class FakeCuda(FakeTensorMode):
    """Answers 1 where Python asks for a value, and is shared by copies of a model."""

    def __deepcopy__(self, memo):
        return self

    def dispatch(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 1
        return super().dispatch(func, types, args, kwargs)


@pytest.fixture
def mode(monkeypatch):
    monkeypatch.setattr(rewrites, 'check_values', lambda model: None)  # there are no values
    # autocast switches itself off without CUDA
    monkeypatch.setattr(torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda: True)
    return FakeCuda(allow_non_fake_inputs=False)


def to_cuda(model, mode):
    """``model.to('cuda')`` with tensors without data: whatever is no parameter or buffer stays."""
    moved = copy.deepcopy(model)
    for module in moved.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                with mode:
                    fake = torch.empty(value.shape, dtype=value.dtype, device='cuda')
                module._parameters[name] = nn.Parameter(fake, value.requires_grad)
        for name, value in list(module._buffers.items()):
            if value is not None:
                with mode:
                    fake = torch.empty(value.shape, dtype=value.dtype, device='cuda')
                module._buffers[name] = fake
    return moved


@pytest.fixture(scope='module')
def segmentor(tmp_path_factory):
    init_default_scope('mmseg')
    folder = tmp_path_factory.mktemp('fake')
    return randomise_batchnorms(MODELS.build(runner_cfg(folder / 'data', folder / 'work').model))


def images(dtype=torch.float32, layout=torch.contiguous_format):
    x = torch.empty(2, 3, *SIZE, device='cuda', dtype=dtype)
    return x.contiguous(memory_format=layout)


AUTOCAST = {
    'float32': nullcontext,
    'fp16': lambda: torch.autocast('cuda', torch.float16),
    'bf16': lambda: torch.autocast('cuda', torch.bfloat16),
}


@pytest.mark.parametrize('autocast', AUTOCAST)
@pytest.mark.parametrize('options', [{}, dict(recompute_1x1=True), dict(with_cp=True)])
def test_the_training_form(mode, autocast, options):
    """Only the forward pass: autograd's engine asks for a CUDA context."""
    model = to_cuda(DilatedRepVGG(TINY, **options), mode).train()
    with mode, AUTOCAST[autocast]():
        outputs = model(images())
    expected = dict(float32=torch.float32, fp16=torch.float16, bf16=torch.bfloat16)[autocast]
    assert {(out.device.type, out.dtype) for out in outputs} == {('cuda', expected)}
    assert all(out.requires_grad for out in outputs)


@pytest.mark.parametrize(
    ('autocast', 'layout'),
    [
        ('float32', torch.contiguous_format),
        ('float32', torch.channels_last),
        ('fp16', torch.channels_last),
        ('bf16', torch.contiguous_format),
    ],
)
@pytest.mark.parametrize('names', [PAPER, MORE])
def test_a_model_rewritten_on_the_gpu(mode, segmentor, names, layout, autocast):
    model = to_cuda(segmentor, mode)
    with mode, torch.no_grad():
        deployed, counts = deployed_copy(model, names)
        with AUTOCAST[autocast]():
            out = deployed(images(layout=layout), mode='tensor')
    assert all(counts.values())
    assert out.device.type == 'cuda'
    assert out.shape[:2] == (2, 19)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('names', [MORE, tuple(REWRITES)])
def test_a_model_rewritten_on_the_cpu_moves_to_the_gpu(mode, segmentor, names, dtype):
    deployed, _ = deployed_copy(segmentor, names)
    model = to_cuda(deployed.to(dtype), mode)
    with mode, torch.no_grad():
        out = model(images(dtype), mode='tensor')
    assert (out.device.type, out.dtype) == ('cuda', dtype)


def test_negative_control_a_constant_that_stays_on_the_cpu(mode, segmentor):
    deployed, _ = deployed_copy(segmentor, MORE)
    moved = to_cuda(deployed, mode)
    stem = moved.backbone.stem.branch_reparam
    with mode:
        stem._parameters['bias'] = nn.Parameter(torch.empty(stem.out_channels))
        with pytest.raises(RuntimeError, match='device'):
            moved(images(), mode='tensor')


def test_the_comparison_of_a_validation(mode, segmentor, monkeypatch):
    monkeypatch.setattr(torch.random, 'fork_rng', lambda devices: nullcontext())  # needs a driver
    model = to_cuda(segmentor, mode)
    assert default_names(model, compared=True) == PAPER
    with mode, torch.autocast('cuda', torch.float16):
        deployed, _ = deployed_copy(model)
        found = compare(model, deployed, images())
    assert found.max_rel == 1  # the answer for any value: everything before it was traced


class Stub:
    """A runner's model and logger."""

    def __init__(self, model):
        self.model = model
        self.logger = logging.getLogger('stub')


def batch(mode):
    """A batch as a data loader gives it, on the CPU."""
    with mode:
        image = torch.empty(3, *SIZE, dtype=torch.uint8, device='cpu')
    sample = SegDataSample(
        metainfo=dict(ori_shape=SIZE, img_shape=SIZE, pad_shape=SIZE, padding_size=[0] * 4)
    )
    return dict(inputs=[image], data_samples=[sample])


@pytest.mark.parametrize('autocast', AUTOCAST)
@pytest.mark.parametrize('step', ['val', 'test'])
def test_the_hook_in_an_evaluation(mode, segmentor, monkeypatch, step, autocast):
    monkeypatch.setattr(torch.random, 'fork_rng', lambda devices: nullcontext())  # needs a driver
    model = to_cuda(segmentor, mode)
    model.data_preprocessor._device = torch.device('cuda')  # ``to`` does this in mmengine
    runner, hook = Stub(model), RepVGGDeployHook(tolerance=1.5)
    hook._before_iter(runner, 0, mode=step)
    with mode, torch.no_grad(), AUTOCAST[autocast]():
        (sample,) = getattr(model, f'{step}_step')(batch(mode))
    assert sample.seg_logits.data.device.type == 'cuda'
    assert sample.seg_logits.data.shape == (19, *SIZE)
    assert hook._deployed[runner] is not model


@pytest.mark.parametrize('names', [PAPER, MORE])
def test_sync_batchnorms_are_fused_on_the_gpu(mode, segmentor, names):
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(segmentor))
    model = to_cuda(converted, mode)
    with mode, torch.no_grad():
        deployed, counts = deployed_copy(model, names)
        out = deployed(images(), mode='tensor')
    assert all(counts.values())
    assert not any(isinstance(module, _BatchNorm) for module in deployed.modules())
    assert out.device.type == 'cuda'


class Logits(nn.Module):
    """What is exported of a segmentor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """(N, 3, H, W) -> (N, 19, H', W')."""
        return self.model(images, mode='tensor')


@pytest.mark.parametrize('names', [PAPER, MORE])
def test_an_exported_program_moves_to_the_gpu(segmentor, names):
    deployed, _ = deployed_copy(segmentor, names)
    program = torch.export.export(Logits(deployed).eval(), (torch.randn(1, 3, *SIZE),))
    mode = FakeCuda(allow_non_fake_inputs=True)  # moves real tensors to the GPU without data
    with mode, torch.no_grad():
        device = torch.empty(0, device='cuda').device  # as TorchRuntime does
        moved = move_to_device_pass(program, device)
        out = moved.module()(images()[:1])
    assert {t.device.type for t in (*moved.state_dict.values(), *moved.constants.values())} <= {
        'cuda'
    }
    assert out.device.type == 'cuda'
