"""Two processes on CPUs compute what one does, and end together."""

import copy
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from mmengine.config import Config
from torch import distributed, nn

from mmseg_repvgg.deploy.quantize.rounding import RoundedConv2d
from mmseg_repvgg.engine import RepVGGDeployHook, launch
from mmseg_repvgg.engine.distributed import (
    CPUDistributedDataParallel,
    CPUSyncBatchNorm,
    sync_on_cpu,
)
from tests.common import runner_cfg
from tests.processes import run, run_ranks

TOOLS = Path(__file__).parents[2] / 'tools'


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def two(function, *args, output):
    codes = run_ranks(2, function, *args, output=output, port=free_port())
    text = '\n'.join(output.with_name(f'{output.name}.{rank}').read_text() for rank in range(2))
    return codes, text


def network() -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Conv2d(2, 4, 3), nn.SyncBatchNorm(4), nn.ReLU(), nn.Conv2d(4, 3, 1)
    model = nn.Sequential(*layers, nn.SyncBatchNorm(3, momentum=None, affine=False))
    nn.init.uniform_(model[1].weight, 0.5, 1.5)
    return model


def step(model: nn.Module, images: torch.Tensor, weights: torch.Tensor) -> None:
    """A backward pass: the sum over the images of something that is no mean of what BN gives."""
    ((model(images).exp() * weights).sum()).backward()


def images_and_weights() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(5, 2, 9, 7, generator=generator) * 3 + 20  # a mean far from 0
    return images, torch.randn(5, 3, 7, 5, generator=generator)


def one_rank(folder: Path, synchronised: bool) -> None:
    distributed.init_process_group('gloo')
    rank = distributed.get_rank()
    model = network()
    if not synchronised:
        model = nn.Sequential(*map(plain, model))
    wrapped = CPUDistributedDataParallel(model, device_ids=[rank], broadcast_buffers=False)
    share = slice(0, 3) if rank == 0 else slice(3, 5)  # of different sizes
    step(wrapped, *(part[share] for part in images_and_weights()))
    gradients = [p.grad * 2 for p in wrapped.module.parameters()]  # DDP gives the mean
    torch.save((gradients, dict(wrapped.module.named_buffers())), folder / f'{rank}.pth')


def plain(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.SyncBatchNorm):
        return module
    norm = nn.BatchNorm2d(module.num_features, affine=module.affine, momentum=module.momentum)
    norm.load_state_dict(module.state_dict())
    return norm


@pytest.mark.parametrize('synchronised', [True, False], ids=['SyncBN', 'negative control: BN'])
def test_statistics_and_gradients_are_those_of_one_process_with_all_images(tmp_path, synchronised):
    whole = nn.Sequential(*map(plain, network()))
    step(whole, *images_and_weights())
    codes, text = two(one_rank, tmp_path, synchronised, output=tmp_path / 'log')
    assert codes == [0, 0], text
    buffers = dict(whole.named_buffers())
    for rank in range(2):
        gradients, found = torch.load(tmp_path / f'{rank}.pth')
        assert found.keys() == buffers.keys()
        pairs = [(p.grad, g) for p, g in zip(whole.parameters(), gradients, strict=True)]
        pairs += [(buffers[name], found[name]) for name in buffers]
        same = [torch.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in pairs]
        assert all(same) is synchronised


def test_in_one_process_it_is_batchnorm():
    ours, theirs = network(), nn.Sequential(*map(plain, network()))
    assert sync_on_cpu(ours) == 2
    images, _ = images_and_weights()
    for _ in range(2):
        assert torch.equal(ours(images), theirs(images))
        ours.eval(), theirs.eval()
    assert isinstance(copy.deepcopy(ours)[1], CPUSyncBatchNorm)
    with pytest.raises(ValueError, match='got 1D input'):
        ours[1](torch.zeros(3))


def one_rank_of_half_precision(folder: Path) -> None:
    distributed.init_process_group('gloo')
    norm = nn.Sequential(nn.SyncBatchNorm(2, momentum=1.0))
    sync_on_cpu(norm)
    images, _ = images_and_weights()
    share = slice(0, 3) if distributed.get_rank() == 0 else slice(3, 5)
    with torch.autocast('cpu', torch.bfloat16):
        output = norm(images[share].bfloat16())
    assert output.dtype == torch.bfloat16
    torch.save(dict(norm[0].named_buffers()), folder / f'{distributed.get_rank()}.pth')


def test_statistics_of_half_precision_are_those_in_float32(tmp_path):
    """In bfloat16, of eight bits, sums of 315 values around 20 are wrong by per cents."""
    whole = nn.BatchNorm2d(2, momentum=1.0)
    images, _ = images_and_weights()
    whole(images.bfloat16().float())
    codes, text = two(one_rank_of_half_precision, tmp_path, output=tmp_path / 'log')
    assert codes == [0, 0], text
    for rank in range(2):
        found = torch.load(tmp_path / f'{rank}.pth')
        for name in ('running_mean', 'running_var'):
            torch.testing.assert_close(found[name], getattr(whole, name), rtol=1e-5, atol=1e-5)


def config(scenes: Path, work_dir: Path, **changes) -> Config:
    """With SyncBN, a validation set of three images and validation at the end."""
    cfg = runner_cfg(scenes, work_dir, log_level='INFO', **changes)
    norms = cfg.model.backbone, cfg.model.decode_head, cfg.model.auxiliary_head
    for part in norms:
        part.norm_cfg = dict(type='SyncBN')
    return cfg


def train_twice(cfg: Config) -> None:
    """Four steps, and a resumed training to six."""
    launch.train(copy.deepcopy(cfg), launcher='pytorch')
    cfg.train_cfg.max_iters = 6
    launch.train(cfg, resume=True, launcher='pytorch')


def scores(work_dir: Path) -> list[float]:
    files = sorted(work_dir.glob('*/vis_data/scalars.json')) or sorted(work_dir.glob('*/*.json'))
    # mmengine's LoggerHook writes the scores of a test in every process, to one file: what follows
    # the first object may be the end of a longer one
    decode = json.JSONDecoder().raw_decode
    lines = [decode(line)[0] for file in files for line in file.read_text().splitlines()]
    return [line['mIoU'] for line in lines if 'mIoU' in line]


def test_two_processes_train_validate_save_resume_and_evaluate_as_one(scenes, tmp_path):
    cfg = config(scenes, tmp_path / 'two')
    codes, text = two(train_twice, cfg, output=tmp_path / 'log')
    assert codes == [0, 0], text
    assert 'SyncBN layers compute the statistics of all processes' in text
    assert 'resumed epoch: 0, iter: 4' in text
    assert len(scores(tmp_path / 'two')) == 3
    last = (tmp_path / 'two' / 'last_checkpoint').read_text()
    assert last.endswith('iter_6.pth')

    def evaluate(name: str, launcher: str) -> None:
        launch.test(config(scenes, tmp_path / name), last, launcher=launcher)

    assert run(evaluate, 'one process', 'none', output=tmp_path / 'log1') == 0
    codes, text = two(evaluate, 'two processes', 'pytorch', output=tmp_path / 'log2')
    assert codes == [0, 0], text
    found = [scores(tmp_path / name) for name in ('one process', 'two processes')]
    assert len(found[0]) == 1
    assert found[0] == found[1]
    assert scores(tmp_path / 'two')[-1] == found[0][0]  # of the validation through the hook


def refuse_on_the_second(cfg: Config) -> None:
    if os.environ['RANK'] == '1':
        cfg.custom_hooks = [dict(type='RepVGGDeployHook', tolerance=1e-30)]
    launch.test(cfg, None, launcher='pytorch')


def test_a_refusal_of_one_process_ends_the_other(scenes, tmp_path):
    start = time.monotonic()
    cfg = config(scenes, tmp_path / 'work')
    codes, text = two(refuse_on_the_second, cfg, output=tmp_path / 'log')
    assert codes == [1, 1], text
    assert time.monotonic() - start < 60
    assert 'EquivalenceError: RepVGGDeployHook' in (tmp_path / 'log.1').read_text()
    assert 'EquivalenceError' not in (tmp_path / 'log.0').read_text()


def train_for_int8(cfg: Config, folder: Path) -> None:
    """Keep the weights of every process, and its scores."""
    runner = launch.train(cfg, launcher='pytorch')
    convs = sum(isinstance(m, RoundedConv2d) for m in runner.model.module.modules())
    state = runner.model.module.state_dict()
    torch.save((convs, state), folder / f'{os.environ["RANK"]}.pth')


@pytest.mark.slow
def test_two_processes_train_for_int8(scenes, tmp_path):
    """Each rounds with the ranges of its own images, and both end with the same weights."""
    assert run(launch.train, config(scenes, tmp_path / 'one'), output=tmp_path / 'log0') == 0
    cfg = config(scenes, tmp_path / 'two', load_from=str(tmp_path / 'one' / 'iter_4.pth'))
    cfg.model.update(
        type='DeployedModel',
        of='mmseg.EncoderDecoder',
        rewrites=['branches', 'batchnorm', 'pyramid'],
    )
    cfg.custom_hooks = [dict(type='Int8TrainingHook')]
    cfg.optim_wrapper.optimizer.lr = 1e-4
    codes, text = two(train_for_int8, cfg, tmp_path, output=tmp_path / 'log')
    assert codes == [0, 0], text
    (convs, first), (_, second) = (torch.load(tmp_path / f'{rank}.pth') for rank in range(2))
    assert convs > 10
    assert all(torch.equal(first[name], second[name]) for name in first)
    saved = torch.load(tmp_path / 'two' / 'iter_4.pth', weights_only=False)['state_dict']
    assert all(torch.equal(saved[name], first[name]) for name in first)


@pytest.mark.slow
def test_torchrun_with_the_tools(scenes, tmp_path):
    """Train, resume, evaluate; a refusal of one process ends the job."""
    cfg = config(scenes, tmp_path / 'work')
    cfg.custom_imports = dict(imports=['mmseg_repvgg'])
    (tmp_path / 'cfg.py').write_text(cfg.pretty_text)

    def torchrun(tool, *args, cfg='cfg.py'):
        command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2']
        command += ['--master_port', str(free_port()), TOOLS / tool, tmp_path / cfg, *args]
        done = subprocess.run(
            [*map(str, command), '--launcher', 'pytorch'],
            capture_output=True,
            text=True,
            timeout=150,
            cwd=tmp_path,
        )
        return done.returncode, done.stdout + done.stderr

    code, text = torchrun('train.py')
    assert code == 0, text
    code, text = torchrun('train.py', '--resume', '--cfg-options', 'train_cfg.max_iters=6')
    assert code == 0, text
    assert 'resumed epoch: 0, iter: 4' in text
    code, text = torchrun('test.py', tmp_path / 'work' / 'iter_6.pth')
    assert code == 0, text
    two_processes = re.findall(r'mIoU: (\S+)', text)[-1]
    done = subprocess.run(
        [sys.executable, TOOLS / 'test.py', tmp_path / 'cfg.py', tmp_path / 'work' / 'iter_6.pth'],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert re.findall(r'mIoU: (\S+)', done.stdout + done.stderr)[-1] == two_processes
    bad = "custom_hooks = [dict(type='RepVGGDeployHook', tolerance=1e-30)]"
    (tmp_path / 'bad.py').write_text(f"_base_ = 'cfg.py'\n{bad}\n")
    start = time.monotonic()
    code, text = torchrun('test.py', tmp_path / 'work' / 'iter_6.pth', cfg='bad.py')
    assert code != 0
    assert 'test: error: RepVGGDeployHook' in text
    assert time.monotonic() - start < 100


STRATEGIES = sorted((TOOLS.parent / 'configs' / 'distributed').glob('*.py'))


@pytest.mark.parametrize('path', STRATEGIES, ids=lambda p: p.stem)
def test_configs_of_strategies_read_and_say_that_they_were_not_run(path, tmp_path):
    """As far as it goes without GPUs: the model, and FSDP's runner and strategy."""
    from mmengine.registry import MODELS, STRATEGIES, init_default_scope

    assert 'NOT RUN HERE' in path.read_text()
    cfg = launch.load_config(path)
    init_default_scope('mmseg')
    assert MODELS.build(cfg.model).backbone.arch
    assert cfg.runner_type == 'FlexibleRunner'
    strategy = STRATEGIES.get(cfg.strategy.type)
    assert strategy is not None
    if strategy.__name__ == 'FSDPStrategy':
        built = strategy(**{k: v for k, v in cfg.strategy.items() if k != 'type'})
        assert built.model_wrapper.use_orig_params


def test_the_hook_refuses_weights_that_are_sharded():
    from torch.distributed.fsdp import FullyShardedDataParallel

    sharded = FullyShardedDataParallel.__new__(FullyShardedDataParallel)
    nn.Module.__init__(sharded)
    sharded._modules['_fsdp_wrapped_module'] = network()  # its own add_module asks for it
    runner, hook = Mock(model=sharded), RepVGGDeployHook()
    with pytest.raises(ValueError, match='shards of the weights.*out of custom_hooks'):
        hook.before_run(runner)
