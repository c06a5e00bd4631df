"""mmengine reads checkpoints safely, those of its own trainings included."""

import contextlib
import pickle
import sys

import pytest
import torch
from mmengine.fileio import LocalBackend, io
from mmengine.fileio.backends import registry_utils
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner, checkpoint, load_checkpoint

from mmseg_repvgg.checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    mmengine_loader,
    read_checkpoint,
)
from tests.checkpoint import payloads


def test_install_twice_is_install_once():
    finders, schemes = list(sys.meta_path), dict(CheckpointLoader._schemes)
    mmengine_loader.install()
    assert sys.meta_path == finders
    assert dict(CheckpointLoader._schemes) == schemes


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


@pytest.mark.parametrize('scheme', ['s3', 'cluster:s3', 'petrel', 'own'])
def test_file_backends_of_mmengine(tmp_path, monkeypatch, trained, scheme):
    """With a backend made up for it; Petrel's needs a package that few have."""

    class Backend(LocalBackend):
        def get(self, filepath):
            return super().get(filepath.split('://')[1])

    backends = dict(registry_utils.prefix_to_backends)
    monkeypatch.setattr(registry_utils, 'prefix_to_backends', backends)
    monkeypatch.setattr(io, 'prefix_to_backends', backends)
    backends[scheme.split(':')[-1]] = Backend
    read = CheckpointLoader.load_checkpoint(f'{scheme}://{trained}/iter_2.pth', 'cpu')
    assert 'message_hub' in read
    file = payloads.save(tmp_path / 'x.pth', payloads.by_eval(tmp_path / 'trace'), 'meta')
    with pytest.raises(UnsafeCheckpointError, match=f'^{scheme}://.*x.pth asks for eval'):
        CheckpointLoader.load_checkpoint(f'{scheme}://{file}')
    with pytest.raises(CheckpointError, match="no file backend for 'unknown'"):
        CheckpointLoader.load_checkpoint('unknown://x.pth')
