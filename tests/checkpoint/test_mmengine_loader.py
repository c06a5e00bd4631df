"""The packages of both families run on current PyTorch, and mmengine reads checkpoints safely."""

import contextlib
import doctest
import importlib.util
import inspect
import json
import os
import pickle
import pkgutil
import subprocess
import sys

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, checkpoint, load_checkpoint
from torch.nn import functional

from mmseg_repvgg import mmcv_stub
from mmseg_repvgg.checkpoint import UnsafeCheckpointError, mmengine_loader, read_checkpoint
from tests.checkpoint import payloads

compiled = importlib.util.find_spec('mmcv._ext')
without_compiled = pytest.mark.skipif(
    compiled is None or compiled.origin != mmcv_stub.__name__, reason='this mmcv has its operators'
)


# compat alone, without what the package itself imports.
ALONE = f"""
import importlib, json, sys
package = sys.modules['mmseg_repvgg'] = type(sys)('mmseg_repvgg')
package.__path__ = [{os.path.dirname(mmengine_loader.__file__)!r}]
from mmseg_repvgg.checkpoint import mmengine_loader
"""


def run(code):
    """Run Python code in a process of its own; return what it prints last, read as JSON."""
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', code],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_install_twice_is_install_once():
    finders, schemes = list(sys.meta_path), dict(CheckpointLoader._schemes)
    mmengine_loader.install()
    assert sys.meta_path == finders
    assert isinstance(finders[-1], mmcv_stub.ExtensionFinder) or compiled is not None
    assert sum(isinstance(finder, mmcv_stub.ExtensionFinder) for finder in finders) == 1
    assert dict(CheckpointLoader._schemes) == schemes


# The stand-in for mmcv._ext.


@without_compiled
def test_everything_imports_only_with_the_stand_in():
    missing = run(
        ALONE
        + """
assert not {'mmcv', 'mmengine'} & set(sys.modules)  # compat alone imports neither
try:
    import mmcv.ops
    missing = None
except ModuleNotFoundError as error:
    missing = error.name
mmengine_loader.install()
for name in ('mmcv.ops', 'mmseg.utils', 'mmseg.models', 'mmseg.apis', 'mmpretrain.models'):
    importlib.import_module(name)
print(json.dumps(missing))
"""
    )
    assert missing == 'mmcv._ext'


def test_without_packages_and_with_a_real_extension(tmp_path):
    for folder in ('pure', 'full'):
        (tmp_path / folder / 'mmcv').mkdir(parents=True)
        (tmp_path / folder / 'mmcv' / '__init__.py').touch()
    (tmp_path / 'full' / 'mmcv' / '_ext.py').touch()
    found = run(
        ALONE
        + f"""
for name in ('mmcv', 'mmengine', 'mmseg', 'mmpretrain'):
    sys.modules[name] = None
mmengine_loader.install()
found = [type(sys.meta_path[-1]).__name__]
for folder in ('pure', 'full'):
    sys.path.insert(0, {str(tmp_path)!r} + '/' + folder)
    sys.modules.pop('mmcv')
    sys.modules.pop('mmcv._ext', None)
    found.append(getattr(importlib.import_module('mmcv._ext'), '__file__', None))
print(json.dumps(found))
"""
    )
    assert found == ['ExtensionFinder', None, str(tmp_path / 'full' / 'mmcv' / '_ext.py')]


@without_compiled
def test_operators_raise_when_called():
    from mmcv.ops import nms

    with pytest.raises(NotImplementedError, match=r'nms is a compiled operator.*full mmcv'):
        nms(torch.rand(2, 4), torch.rand(2), 0.5)


@without_compiled
def test_pure_parts_of_mmcv_ops_work():
    from mmcv.ops import point_sample

    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    points = torch.tensor([[[0.5, 0.5], [0.125, 0.5], [0.75, 1 / 3]]])  # x, y as fractions
    # Pixel centres are at (x + 0.5) / 4 and (y + 0.5) / 3, so these points are at the pixels
    # (1.5, 1), (0, 1) and (2.5, 0.5), of value 4 y + x.
    torch.testing.assert_close(point_sample(image, points), torch.tensor([[[5.5, 4.0, 4.5]]]))
    expected = functional.grid_sample(image, 2 * points[:, None] - 1, align_corners=False)
    torch.testing.assert_close(point_sample(image, points), expected[:, :, 0])


@without_compiled
def test_mmcv_reports_its_environment():
    """Its collect_env calls two functions of the extension whenever mmcv.ops imports."""
    from mmcv.utils import collect_env

    environment = collect_env()
    assert environment['MMCV Compiler'] == environment['MMCV CUDA Compiler'] == 'n/a'


@without_compiled
def test_tools_that_walk_over_modules_are_not_fooled():
    import mmcv.ops  # noqa: F401

    module = sys.modules['mmcv._ext']
    for name in ('__file__', '__path__', '__wrapped__', '__all__', '__version__', '_private'):
        assert not hasattr(module, name), name
    assert hasattr(module, 'any_operator')
    assert module.any_operator is module.any_operator
    assert module.__spec__ is not None
    assert importlib.util.find_spec('mmcv._ext').origin == 'mmseg_repvgg.mmcv_stub'
    assert importlib.util.find_spec('mmcv.no_such_module') is None
    assert 'mmcv._ext' in repr(module)

    assert pickle.whichmodule(ALONE, 'ALONE') == __name__  # looks through all modules
    inspect.getmodule(compile('', 'nowhere', 'exec'))  # so does this
    assert doctest.DocTestFinder().find(module) == []
    assert inspect.unwrap(module.any_operator) is module.any_operator
    if sys.version_info < (3, 14):
        assert pkgutil.find_loader('mmcv._ext') is not None  # mmcv's check_ops_exist
    compiled_sum = torch.compile(lambda x: x + 1, backend='eager')
    assert compiled_sum(torch.ones(1)) == 2


# Checkpoints read by mmengine.


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, mode='tensor'):
        y = self.linear(x)
        return dict(loss=y.square().mean()) if mode == 'loss' else y


def runner(work_dir, name, **kwargs):
    """A real runner: log, message hub, EMA, momentum and a scheduler with milestones."""
    data = [dict(x=torch.tensor([1.0, number])) for number in range(16)]
    return Runner(
        Model(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            dataset=data,
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=4),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        param_scheduler=dict(type='MultiStepLR', milestones=[1, 3], by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
            logger=dict(type='LoggerHook', interval=1),
        ),
        custom_hooks=[dict(type='EMAHook')],
        log_processor=dict(by_epoch=False),
        default_scope='mmengine',
        experiment_name=name,
        log_level='ERROR',
        **kwargs,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The folder of a training run of four iterations, saved after the second and the last."""
    folder = tmp_path_factory.mktemp('run')
    runner(folder, 'first').train()
    return folder


def test_training_checkpoint_is_read(trained):
    file = trained / 'iter_2.pth'
    with pytest.raises(pickle.UnpicklingError):  # control: torch alone refuses it
        torch.load(file, weights_only=True)
    real = torch.load(file, weights_only=False)

    read = CheckpointLoader.load_checkpoint(str(file), map_location='cpu')

    assert read.keys() == real.keys()
    assert read['meta'] == real['meta']
    assert read['message_hub']['runtime_info'] == real['message_hub']['runtime_info']
    assert read['message_hub']['resumed_keys'] == real['message_hub']['resumed_keys']
    assert 'train/loss' in real['message_hub']['log_scalars']
    for name, buffer in real['message_hub']['log_scalars'].items():
        got = read['message_hub']['log_scalars'][name]
        assert got.data[0].tolist() == buffer.data[0].tolist()
        assert got.data[1].tolist() == buffer.data[1].tolist()
    for part in ('state_dict', 'ema_state_dict'):
        assert read[part].keys() == real[part].keys()
        assert all(torch.equal(read[part][name], real[part][name]) for name in real[part])
    assert read['param_schedulers'] == real['param_schedulers']
    assert read['optimizer']['param_groups'] == real['optimizer']['param_groups']


def test_resumed_training_equals_uninterrupted_training(trained, tmp_path):
    uninterrupted = torch.load(trained / 'iter_4.pth', weights_only=False)
    half = torch.load(trained / 'iter_2.pth', weights_only=False)

    resumed = runner(tmp_path, 'second', load_from=str(trained / 'iter_2.pth'), resume=True)
    resumed.train()

    assert resumed.iter == 4
    for name, expected in (('train/lr', [0.1, 0.01, 0.01, 0.001]), ('train/loss', None)):
        history = resumed.message_hub.get_scalar(name).data[0].tolist()
        assert history == uninterrupted['message_hub']['log_scalars'][name].data[0].tolist()
        assert expected is None or history == pytest.approx(expected)
    final = read_checkpoint(tmp_path / 'iter_4.pth')
    for part in ('state_dict', 'ema_state_dict'):
        for name, value in uninterrupted[part].items():
            assert torch.equal(final[part][name], value)
    weight = 'linear.weight'  # control: the last two iterations did change something
    assert not torch.equal(half['state_dict'][weight], final['state_dict'][weight])


def test_before_torch_2_6_mmengine_reads_as_it_does(monkeypatch):
    monkeypatch.setattr(CheckpointLoader, '_schemes', {'': checkpoint.load_from_local})
    monkeypatch.setattr(mmengine_loader, 'CAN_STAND_IN', False)
    mmengine_loader.read_checkpoints_safely()
    assert CheckpointLoader._schemes == {'': checkpoint.load_from_local}
    monkeypatch.setattr(mmengine_loader, 'CAN_STAND_IN', True)
    mmengine_loader.read_checkpoints_safely()
    assert CheckpointLoader._schemes[''] is mmengine_loader.load_from_local


def test_weights_load_into_a_model(trained):
    model = Model()
    load_checkpoint(model, str(trained / 'iter_2.pth'), strict=True)
    saved = read_checkpoint(trained / 'iter_2.pth')['state_dict']
    assert torch.equal(model.linear.weight, saved['linear.weight'])


@pytest.mark.parametrize('harm', payloads.RUNNING)
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_mmengine_does_not_run_what_is_in_a_file(tmp_path, family, harm, zipped):
    trace = tmp_path / 'trace'
    file = payloads.save(tmp_path / 'x.pth', harm(trace), 'message_hub', zipped)
    model = Model()
    before = model.linear.weight.clone()
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(model, str(file))
    assert not trace.exists()
    assert torch.equal(model.linear.weight, before)
    if family == 'onedl':  # control: its own reader does run it
        with contextlib.suppress(Exception):
            checkpoint.load_from_local(str(file), 'cpu')
        assert trace.exists()


def test_missing_file_and_home(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r'none\.pth'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'none.pth'))
    torch.save({'a': torch.ones(1)}, tmp_path / 'x.pth')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert CheckpointLoader.load_checkpoint('~/x.pth').keys() == {'a'}
