"""Trains and tests with mmengine's Runner from a config file, for tools/train.py and test.py."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.registry import METRICS, RUNNERS
from mmengine.runner import Runner

from mmseg_repvgg.atomic_files import writable_folder
from mmseg_repvgg.checks import check_model
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.engine.console import ShortLogRunner, without_known_warnings
from mmseg_repvgg.engine.data_check_hook import DataCheckHook
from mmseg_repvgg.engine.data_settings import check_data, check_not_data, data_sets
from mmseg_repvgg.engine.distributed import prepare_for_cpu
from mmseg_repvgg.engine.label_hook import LabelCheckHook
from mmseg_repvgg.engine.load_hook import LoadCheckHook
from mmseg_repvgg.engine.mixed_precision import set_precision, warn_of_slow_half
from mmseg_repvgg.engine.resume import (
    last_complete_checkpoint,
    make_resumable,
    seed_of_checkpoint,
)
from mmseg_repvgg.engine.short_runs import fit_short_run
from mmseg_repvgg.engine.step_seed_hook import StepSeedHook
from mmseg_repvgg.engine.summary_hook import SummaryHook
from mmseg_repvgg.shipped_files import find_config

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def load_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read a config file and merge ``--cfg-options`` into it.

    Args:
        path: The config file, or the name of one that comes with the package.
        options: Dotted keys and their values.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it or one of its ``_base_`` files is not a config, or an option does not fit.
    """
    path = find_config(path)
    try:
        cfg = Config.fromfile(path)
    except (NameError, SyntaxError, OSError, KeyError, RuntimeError) as error:
        is_number = getattr(error, 'name', None) in ('inf', 'nan')
        hint = "; Python's infinity is float('inf')" if is_number else ''
        raise ValueError(f'{path} cannot be read as a config: {error}{hint}') from error
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
    verbose: bool = False,
    tensorboard: bool = False,
) -> Runner:
    """Train what a config describes.

    Args:
        cfg: The config, which stays as it is.
        work_dir: Where logs and checkpoints go; by default the config's, or
            ``work_dirs/<config name>``.
        resume: True: from the last complete checkpoint in the work folder, if any; a path: from
            that file.
        amp: Automatic mixed precision: float16 on a GPU, bfloat16 on the CPU.
        launcher: One of :data:`LAUNCHERS`.
        verbose: Show mmengine's whole log on the console; it is always in the log file.
        tensorboard: Also write the scores for TensorBoard.

    Returns:
        The runner, after training.

    Raises:
        FileNotFoundError: If a data folder is missing.
        ValueError: If the config is that of a fused model, ``amp`` cannot be used, or
            ``tensorboard`` is not installed.
    """
    cfg = copy.deepcopy(cfg)
    check_model(cfg)
    hooks = map(type_name, cfg.get('custom_hooks') or [])
    if type_name(cfg.model) == 'DeployedModel' and 'Int8TrainingHook' not in hooks:
        raise ValueError(
            f'{cfg.filename} is the config of a fused model, which cannot be trained; train with '
            'the config it was fused from, and fuse afterwards with mmseg-repvgg fuse. Only the '
            'rounding of int8 is trained in fused form, with Int8TrainingHook (docs/int8.md)'
        )
    _prepare(cfg, work_dir, launcher)
    check_data(cfg, 'train_dataloader', 'val_dataloader')
    set_precision(cfg, amp)
    _set_resume(cfg, resume)
    fit_short_run(cfg)
    if tensorboard:
        _add_tensorboard(cfg)
    make_resumable(cfg)
    with nullcontext() if verbose else without_known_warnings():
        runner = _build_runner(cfg, 1.0 if cfg.resume else 0.5, verbose, StepSeedHook())
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
    verbose: bool = False,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test set.

    Args:
        cfg: The config, which stays as it is.
        checkpoint: The weights; None for a model that has its own.
        work_dir: Where logs and metrics go; as in :func:`train`.
        out: Folder for the predicted label maps.
        show: Show predictions in a window, each for ``wait_time`` seconds.
        show_dir: Folder for painted predictions, under the names of the images.
        wait_time: Seconds.
        tta: Test-time augmentation, the config's ``tta_model`` and ``tta_pipeline``.
        launcher: One of :data:`LAUNCHERS`.
        verbose: As in :func:`train`.

    Returns:
        The metrics by name, in percent.

    Raises:
        FileNotFoundError: If a data folder is missing.
        ValueError: If the config lacks what an option needs, ``checkpoint`` is exported, or an
            output folder is that of the data.
    """
    if checkpoint is not None and Path(f'{checkpoint}.json').is_file():
        raise ValueError(
            f'{checkpoint} is an exported model: choose its runtime (--runtime), or give the '
            'checkpoint it was exported from'
        )
    cfg = copy.deepcopy(cfg)
    check_model(cfg)
    _prepare(cfg, work_dir, launcher)
    check_data(cfg, 'test_dataloader')
    cfg.load_from = checkpoint
    _drop_initial_weights(cfg)
    if show or show_dir:
        _set_drawing(cfg, show, show_dir, wait_time)
    if tta:
        if 'tta_model' not in cfg or 'tta_pipeline' not in cfg:
            raise ValueError('--tta needs tta_model and tta_pipeline in the config')
        for _, dataset in data_sets(cfg.test_dataloader.dataset):
            dataset['pipeline'] = cfg.tta_pipeline
        cfg.model = dict(cfg.tta_model, module=cfg.model)
    if out is not None:
        _keep_predictions(cfg, out)
    with nullcontext() if verbose else without_known_warnings():
        return _build_runner(cfg, 1.0, verbose).test()


def _prepare(cfg: Config, work_dir: str | None, launcher: str) -> None:
    """Set work folder, launcher and a communication backend that this machine has.

    Raises:
        OSError: If the work folder cannot be made or written to.
    """
    name = Path(cfg.filename or 'config').stem
    cfg.work_dir = work_dir or cfg.get('work_dir') or str(Path('work_dirs') / name)
    writable_folder(cfg.work_dir)
    cfg.launcher = launcher
    if cfg.get('randomness'):
        cfg.randomness.setdefault('seed', None)  # mmengine needs the key, and draws a seed for None
    prepare_for_cpu(cfg, launcher)
    loops = (cfg.get('val_cfg') or {}, cfg.get('test_cfg') or {})
    if get_device() == 'cpu' and any(loop.get('fp16') for loop in loops):
        warn_of_slow_half()


def _build_runner(cfg: Config, required: float, verbose: bool, *hooks: Hook) -> Runner:
    """Build mmengine's Runner or the one named by ``runner_type``, with hooks that check its input.

    Args:
        cfg: The config.
        required: The share of the model's tensors that a checkpoint must fill; 1 also applies to a
            LoadCheckHook of the config.
        verbose: Show mmengine's whole log; always so with ``runner_type``.
        *hooks: Further hooks. All are registered unless the config has one of their type.
    """
    if 'runner_type' in cfg:
        runner = RUNNERS.build(cfg)
    else:
        runner = (Runner if verbose else ShortLogRunner).from_cfg(cfg)
    own_hooks = LoadCheckHook(required), DataCheckHook(), LabelCheckHook(), SummaryHook()
    for hook in (*own_hooks, *hooks):
        own = [other for other in runner.hooks if isinstance(other, type(hook))]
        if not own:
            runner.register_hook(hook)
        for other in own:
            if isinstance(other, LoadCheckHook) and required == 1:
                other.required = required
    return runner


def _set_resume(cfg: Config, resume: bool | str) -> None:
    if cfg.get('resume') and not resume:
        warnings.warn(
            'resume=True of the config has no effect, as in the tools of mmseg: training starts at '
            'the first step. Add --resume to resume it',
            stacklevel=3,
        )
    source = last_complete_checkpoint(cfg) if resume is True else resume or None
    cfg.resume = bool(source)
    if not source:
        return
    cfg.load_from = source
    _drop_initial_weights(cfg)
    if (cfg.get('randomness') or {}).get('seed') is None and Path(source).is_file():
        # mmengine also reads it from the checkpoint, but after building the sampler
        cfg.merge_from_dict({'randomness.seed': seed_of_checkpoint(source)})


def _drop_initial_weights(cfg: Config) -> None:
    """Do not download ImageNet weights that a checkpoint replaces."""
    if cfg.model.get('pretrained'):
        cfg.model.pretrained = None


def _set_drawing(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    hook = cfg.default_hooks.get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir need '
            "default_hooks.visualization=dict(type='SegVisualizationHook')"
        )
    # interval: every image; mmseg's default is every 50th
    hook.update(draw=True, show=show, wait_time=wait_time, interval=1)
    if show_dir:
        check_not_data(cfg, '--show-dir', show_dir)
        pictures = dict(type='PictureBackend', save_dir=str(writable_folder(show_dir)))
        backends = cfg.visualizer.get('vis_backends') or []
        others = [backend for backend in backends if type_name(backend) != 'LocalVisBackend']
        cfg.visualizer.vis_backends = [*others, pictures]


def _add_tensorboard(cfg: Config) -> None:
    if find_spec('tensorboard') is None:
        raise ValueError('--tensorboard needs a package: pip install tensorboard')
    visualizer = cfg.setdefault('visualizer', dict(type='Visualizer'))
    backends = visualizer.get('vis_backends') or [dict(type='LocalVisBackend')]
    if 'TensorboardVisBackend' not in map(type_name, backends):
        visualizer['vis_backends'] = [*backends, dict(type='TensorboardVisBackend')]


def _keep_predictions(cfg: Config, out: str) -> None:
    """Let the first metric that can write predictions write them."""
    check_not_data(cfg, '--out', out)
    given = cfg.test_evaluator
    metrics = given if isinstance(given, (list, tuple)) else [given]
    with METRICS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for metric in metrics:
            kind = metric['type']
            kind = registry.get(kind) if isinstance(kind, str) else kind
            if kind is not None and 'output_dir' in signature(kind).parameters:
                metric.update(output_dir=out, keep_results=True)
                return
    names = ', '.join(map(type_name, metrics))
    raise ValueError(
        f'--out needs a metric that writes predictions; test_evaluator has {names}. Add '
        "dict(type='IoUMetric') to it"
    )
