"""From a config file to a running mmengine Runner: what tools/train.py and tools/test.py call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from mmseg_repvgg.atomic_files import writable_folder
from mmseg_repvgg.checks import check_crops, check_model
from mmseg_repvgg.command_line import user_errors as user_errors
from mmseg_repvgg.engine.distributed import prepare_for_cpu
from mmseg_repvgg.engine.label_hook import LabelCheckHook
from mmseg_repvgg.engine.load_hook import LoadCheckHook
from mmseg_repvgg.engine.resume import last_complete_checkpoint, seed_of_checkpoint
from mmseg_repvgg.engine.slow_half import warn_of_slow_half
from mmseg_repvgg.engine.step_seed_hook import StepSeedHook

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and merge ``--cfg-options`` into it.

    Args:
        path: The config file.
        options: Dotted keys and their values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it, or one of its ``_base_`` files, is no config, or an option does not fit.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'config {path} not found; configs/ of the project holds them')
    try:
        cfg = Config.fromfile(str(path))
    except (SyntaxError, OSError, KeyError) as error:
        raise ValueError(f'{path} cannot be read as a config: {error}') from error
    try:
        cfg.merge_from_dict(dict(options or {}))
    except (TypeError, KeyError, IndexError) as error:
        raise ValueError(f'--cfg-options do not fit {path}: {error}') from error
    return cfg


def train(
    cfg: Config,
    work_dir: str | None = None,
    resume: bool | str = False,
    amp: bool = False,
    launcher: str = 'none',
) -> Runner:
    """Train what a config describes.

    Args:
        cfg: The config.
        work_dir: Where logs and checkpoints go; by default the config's, or
            ``work_dirs/<config name>``.
        resume: True: from the last complete checkpoint in the work folder, if any; a path: from
            that file.
        amp: Automatic mixed precision: float16 on a GPU, bfloat16 on the CPU.
        launcher: One of :data:`LAUNCHERS`.

    Returns:
        The runner, after training.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If the config is that of a fused model, or ``amp`` cannot act.
    """
    check_model(cfg)
    if cfg.model.type == 'DeployedModel':
        raise ValueError(
            f'{cfg.filename} is the config of a fused model, which cannot be trained; train with '
            'the config it was fused from, and fuse afterwards with tools/deploy_fuse.py'
        )
    prepare(cfg, work_dir, launcher)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    if amp:
        _use_amp(cfg)
    _check_amp(cfg)
    _set_resume(cfg, resume)
    make_resumable(cfg)
    runner = build_runner(cfg)
    runner.register_hook(LoadCheckHook(required=1.0 if cfg.resume else 0.5))
    runner.register_hook(LabelCheckHook())
    runner.register_hook(StepSeedHook())
    runner.train()
    return runner


def test(
    cfg: Config,
    checkpoint: str | None,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test set.

    Args:
        cfg: The config.
        checkpoint: The weights; None for a model that has its own.
        work_dir: Where logs and metrics go; as in :func:`train`.
        out: Folder for the predicted label maps.
        show: Show predictions in a window, each for ``wait_time`` seconds.
        show_dir: Folder for painted predictions.
        wait_time: Seconds.
        tta: Test-time augmentation, the config's ``tta_model`` and ``tta_pipeline``.
        launcher: One of :data:`LAUNCHERS`.

    Returns:
        The metrics by name, in percent.

    Raises:
        FileNotFoundError: If the data are not there.
        ValueError: If the config lacks what an option needs.
    """
    prepare(cfg, work_dir, launcher)
    check_data(cfg, 'test_dataloader')
    cfg.load_from = checkpoint
    if show or show_dir:
        _draw(cfg, show, show_dir, wait_time)
    if tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise ValueError('--tta needs tta_model and tta_pipeline in the config')
        cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    if out is not None:
        cfg.test_evaluator.update(output_dir=out, keep_results=True)
    runner = build_runner(cfg)
    if checkpoint is not None:
        runner.register_hook(LoadCheckHook())
    runner.register_hook(LabelCheckHook())
    return runner.test()


def prepare(cfg: Config, work_dir: str | None, launcher: str) -> None:
    """Set work folder, launcher and a communication backend that this machine has.

    Raises:
        OSError: If the work folder cannot be made or written to.
        ValueError: If there is no model, or the windows of ``test_cfg`` do not cover an image.
    """
    check_model(cfg)
    name = Path(cfg.filename or 'config').stem
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    writable_folder(cfg.work_dir)
    cfg.launcher = launcher
    prepare_for_cpu(cfg, launcher)
    loops = (cfg.get('val_cfg') or {}, cfg.get('test_cfg') or {})
    if get_device() == 'cpu' and any(loop.get('fp16') for loop in loops):
        warn_of_slow_half()


def build_runner(cfg: Config) -> Runner:
    """The runner of the config: mmengine's, or the one its ``runner_type`` names."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def make_resumable(cfg: Config) -> None:
    """Change a config so that a training that is killed and resumed ends as an undisturbed one.

    What is not mmengine's own (checkpoint hook, batch sampler) is left as it is.
    """
    hooks = cfg.setdefault('default_hooks', {})
    hook = hooks.setdefault('checkpoint', dict(type='CheckpointHook', interval=1))
    if hook is not None and hook['type'] == 'CheckpointHook':
        hook['type'] = 'SafeCheckpointHook'
    loader = cfg.train_dataloader
    sampler = loader.get('sampler')
    if not sampler or loader.get('batch_sampler') or sampler['type'] == 'SeededSampler':
        return
    loader.sampler = dict(type='SeededSampler', sampler=sampler)
    loader.dataset = dict(type='SeededDataset', dataset=loader.dataset)


def _set_resume(cfg: Config, resume: bool | str) -> None:
    source = last_complete_checkpoint(cfg) if resume is True else resume or None
    cfg.resume = bool(source)
    if not source:
        return
    cfg.load_from = source
    if (cfg.get('randomness') or {}).get('seed') is None and Path(source).is_file():
        # mmengine takes it from the checkpoint too, but after it has built the sampler
        cfg.merge_from_dict({'randomness.seed': seed_of_checkpoint(source)})


def check_data(cfg: Config, *loaders: str) -> None:
    """Say what to do about a data folder that is not there, before anything is built.

    Raises:
        FileNotFoundError: Naming the folder, the option that sets it and how it is made.
        ValueError: If a transform crops to no size.
    """
    for loader in loaders:
        dataset = (cfg.get(loader) or {}).get('dataset', {})
        check_crops(loader, dataset.get('pipeline') or [])
        root = dataset.get('data_root')
        if root and not Path(root).is_dir():
            raise FileNotFoundError(
                f'{loader}: data_root {root!r} is not a folder. Set it with --cfg-options '
                f'{loader}.dataset.data_root=PATH (Cityscapes: prepare it with '
                'tools/prepare_cityscapes.py PATH; demo scenes: tools/make_demo_scenes.py PATH)'
            )


def _use_amp(cfg: Config) -> None:
    """Wrap the optimizer for mixed precision: float16 on a GPU, bfloat16 on the CPU."""
    wrapper = cfg.optim_wrapper
    kind = wrapper.get('type', 'OptimWrapper')
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        raise ValueError(f'--amp cannot be combined with optim_wrapper {kind!r}')
    if get_device() != 'cpu':
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    if wrapper.get('dtype') not in (None, 'bfloat16'):
        raise ValueError(
            f'--amp on the CPU computes in bfloat16, optim_wrapper.dtype={wrapper.dtype!r} needs a '
            'GPU; leave dtype out (python -m mmseg_repvgg.doctor says what PyTorch sees)'
        )
    warn_of_slow_half()
    for key in ('dtype', 'loss_scale', 'use_fsdp'):  # of AmpOptimWrapper
        wrapper.pop(key, None)
    wrapper.type = 'CpuAmpOptimWrapper'


def _check_amp(cfg: Config) -> None:
    kind = (cfg.get('optim_wrapper') or {}).get('type')
    if kind == 'AmpOptimWrapper' and get_device() == 'cpu':
        raise ValueError(
            'the optim_wrapper of the config is AmpOptimWrapper, which needs a GPU; on the CPU add '
            '--amp, for bfloat16, or --cfg-options optim_wrapper.type=OptimWrapper, for float32 '
            '(python -m mmseg_repvgg.doctor says what PyTorch sees)'
        )


def _draw(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need '
            "default_hooks.visualization=dict(type='SegVisualizationHook')"
        )
    # interval: every image; mmseg's default is every 50th
    hook.update(draw=True, show=show, wait_time=wait_time, interval=1)
    if show_dir:
        cfg.visualizer.save_dir = show_dir
