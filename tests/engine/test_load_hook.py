"""LoadCheckHook in a real Runner: what is loaded, and what is refused."""

import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner

from mmseg_repvgg.checkpoint import CheckpointError
from mmseg_repvgg.checkpoint.names import translate
from mmseg_repvgg.engine import LoadCheckHook
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import deployed_copy
from tests.checkpoint.wrappings import FORMS, write
from tests.common import TINY, randomise_batchnorms, runner_cfg


@pytest.fixture
def files(scenes, tmp_path):
    """A segmentor's checkpoint in training and fused form, and a classifier's in official names."""
    init_default_scope('mmseg')
    model = MODELS.build(runner_cfg(scenes, tmp_path).model)
    randomise_batchnorms(model)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'training.pth')
    fused, _ = deployed_copy(model, ['branches', 'batchnorm'])
    torch.save(dict(state_dict=fused.state_dict()), tmp_path / 'fused.pth')
    backbone = DilatedRepVGG(TINY)
    classifier = translate(
        {f'backbone.{k}': v for k, v in backbone.state_dict().items()}, 'official'
    )
    torch.save(classifier | {'linear.weight': torch.ones(2, 64)}, tmp_path / 'official.pth')
    return tmp_path, backbone


def load(scenes, folder, name, hook, custom_hooks=(), work='work', **backbone):
    cfg = runner_cfg(scenes, folder / work, load_from=str(folder / name), log_level='INFO')
    cfg.model.backbone.update(backbone)
    cfg.custom_hooks.extend(custom_hooks)
    cfg.experiment_name = f'{work}-{name}'  # a log of its own
    runner = Runner.from_cfg(cfg)
    runner.register_hook(hook)
    runner.call_hook('before_run')  # as Runner.train does
    runner.load_or_resume()
    return runner


def test_a_whole_checkpoint_is_counted(scenes, files):
    folder, _ = files
    runner = load(scenes, folder, 'training.pth', LoadCheckHook())
    total = len(runner.model.state_dict())
    log = next((folder / 'work').glob('*/*.log')).read_text()
    assert f'{total} of {total} tensors loaded from {folder}/training.pth\n' in log


def test_what_mmengine_would_load_in_part_is_refused(scenes, files):
    folder, _ = files
    # negative control: without the hook nothing is raised, and the model keeps random weights
    load(scenes, folder, 'fused.pth', LoadCheckHook(required=0.01))
    with pytest.raises(
        CheckpointError,
        match=r'fused.pth does not .*Found: RepVGG .*, fused form.*Expected: .* training form',
    ):
        load(scenes, folder, 'fused.pth', LoadCheckHook())
    wide = dict(arch=dict(TINY, width_factor=(0.25, 0.125, 0.125, 0.125)))
    with pytest.raises(CheckpointError, match=r'training.pth does not fit .* of another shape'):
        load(scenes, folder, 'training.pth', LoadCheckHook(), **wide)
    with pytest.raises(ValueError, match='required=0 must be a share'):
        LoadCheckHook(required=0)


def test_a_classifier_in_official_names_fills_the_backbone(scenes, files):
    folder, backbone = files
    runner = load(scenes, folder, 'official.pth', LoadCheckHook(required=0.5))
    state = runner.model.backbone.state_dict()
    assert all(torch.equal(state[name], value) for name, value in backbone.state_dict().items())


def test_training_weights_are_fused_for_a_fused_model(scenes, files):
    folder, _ = files
    runner = load(scenes, folder, 'training.pth', LoadCheckHook(), deploy=True)
    fused = torch.load(folder / 'fused.pth', weights_only=True)['state_dict']
    state = runner.model.backbone.state_dict()
    assert len(state) == 20
    assert all(torch.equal(value, fused[f'backbone.{name}']) for name, value in state.items())


@pytest.mark.parametrize('form', FORMS)
def test_load_from_unwraps_every_form(scenes, files, form):
    folder, _ = files
    weights = torch.load(folder / 'training.pth')['state_dict']
    runner = load(scenes, folder, write(form, weights, folder).name, LoadCheckHook())
    state = runner.model.state_dict()
    assert set(state) == set(weights)
    assert all(torch.equal(state[name], value) for name, value in weights.items())


@pytest.mark.parametrize('form', ['bare', 'model'])
def test_averaged_weights_start_from_what_was_loaded(scenes, files, form):
    """EMAHook reads the checkpoint too: it must find the weights under our names."""
    folder, backbone = files
    weights = torch.load(folder / 'official.pth')
    ema = dict(type='EMAHook', strict_load=False)  # the heads are not in it
    name = write(form, weights, folder).name
    runner = load(scenes, folder, name, LoadCheckHook(required=0.5), custom_hooks=[ema])
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    averaged = hook.ema_model.module.backbone.state_dict()
    assert all(torch.equal(averaged[n], value) for n, value in backbone.state_dict().items())


def test_the_file_that_was_loaded_is_named(scenes, files):
    """The config's at the start of a run; a later ``load_checkpoint`` does not say its own."""
    folder, _ = files
    hook = LoadCheckHook()
    runner = load(scenes, folder, 'training.pth', hook)
    (folder / 'training.pth').rename(folder / 'other.pth')
    for _ in range(2):
        with pytest.raises(CheckpointError, match='^the checkpoint does not fit'):
            runner.load_checkpoint(str(folder / 'fused.pth'))
        runner.call_hook('before_run')  # a test after a training
    runner.load_checkpoint(str(folder / 'other.pth'))
    cfg = runner_cfg(scenes, folder / 'again', resume=True, experiment_name='again')
    (folder / 'again').mkdir()
    (folder / 'fused.pth').rename(folder / 'again' / 'iter_2.pth')
    (folder / 'again' / 'last_checkpoint').write_text(str(folder / 'again' / 'iter_2.pth'))
    runner = Runner.from_cfg(cfg)
    runner.register_hook(LoadCheckHook())
    runner.call_hook('before_run')
    with pytest.raises(CheckpointError, match='again/iter_2.pth'):
        runner.load_or_resume()


def test_registered_twice_it_acts_once(scenes, files):
    folder, _ = files
    twice = [dict(type='LoadCheckHook')]
    load(scenes, folder, 'training.pth', LoadCheckHook(), custom_hooks=twice, work='twice')
    log = next((folder / 'twice').glob('*/*.log')).read_text()
    assert log.count('tensors loaded from') == 1
