"""Fuse a training checkpoint and write its config (tools/deploy_fuse.py)."""

from __future__ import annotations

import copy
import inspect
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import Tensor, nn

from mmseg_repvgg.atomic_files import atomic_file, make_folder
from mmseg_repvgg.checkpoint.loading import load_strictly
from mmseg_repvgg.checkpoint.names import is_fused
from mmseg_repvgg.checkpoint.reading import CheckpointError, read_checkpoint, state_dict_of
from mmseg_repvgg.checkpoint.writing import STAMP, make_stamp, write_checkpoint
from mmseg_repvgg.checks import check_integer, check_model, check_tolerance
from mmseg_repvgg.deploy.image_pipeline import build_test_set, first_test_set
from mmseg_repvgg.deploy.load_segmentor import build_model, model_settings
from mmseg_repvgg.deploy.torch_device import torch_device
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.models.deployed import deployed_config
from mmseg_repvgg.reparam.equivalence import (
    Difference,
    compare,
    random_images,
    require_equal,
    tolerance_of,
)
from mmseg_repvgg.reparam.rewrites import check_names, default_names, deployed_copy, describe

TRAINING_KEYS = (
    'train_cfg',
    'train_dataloader',
    'train_pipeline',
    'optim_wrapper',
    'param_scheduler',
    'auto_scale_lr',
)


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse_checkpoint` did."""

    counts: dict[str, int]  # places changed by each rewrite
    parameters_before: int
    parameters_after: int
    on_random: Difference  # training form against fused form, on random input
    on_images: Difference | None  # the same on real images; None: not compared
    num_images: int
    checkpoint: Path
    config: Path

    def __str__(self) -> str:
        images = (
            f'on {self.num_images} images: {self.on_images}'
            if self.on_images
            else 'on images: not checked (no data of test_dataloader, or --images 0)'
        )
        return '\n'.join(
            [
                f'fused: {describe(self.counts)}',
                f'parameters: {self.parameters_before:,} -> {self.parameters_after:,}',
                f'on random input: {self.on_random}',
                images,
                f'wrote {self.checkpoint}',
                f'wrote {self.config}',
            ]
        )


def fuse_checkpoint(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    rewrites: Sequence[str] | None = None,
    tolerance: float | None = None,
    num_images: int = 2,
    device: str = 'cpu',
) -> FuseReport:
    """Fuse a training checkpoint, check that the result is equal, and write it.

    Both forms are compared on random input and, if the data of ``test_dataloader`` are there, on
    images. Then the fused form is built from its own config and compared. Nothing is written unless
    all checks pass.

    The weights are fused on the CPU whatever the device, because not every device has float64.

    Args:
        cfg: The training config.
        checkpoint: The training checkpoint.
        out: The fused checkpoint to write; its config gets the same name with ``.py``.
        rewrites: Names of the rewrites; by default those of :func:`.default_names` for ``device``.
        tolerance: Largest relative difference; the default depends on the dtype of the weights.
        num_images: How many images to compare on.
        device: PyTorch's name of the device that the fused model is for; it is compared there.

    Raises:
        CheckpointError: If the checkpoint does not fit the config or is fused already.
        EquivalenceError: If the fused model is not equal.
        ValueError: If there is nothing to fuse, or on a wrong argument.
    """
    out, on = Path(out), torch_device(device)
    if out.suffix not in ('.pth', '.pt'):
        raise ValueError(f'OUT {str(out)!r} must end in .pth: it names the fused checkpoint')
    if out.resolve() == Path(checkpoint).resolve():
        raise ValueError(f'OUT {str(out)!r} is the training checkpoint itself; give another name')
    check_tolerance(tolerance)
    check_integer('num_images', num_images, 0)
    before, loaded = load_training_model(cfg, checkpoint)
    original = _copy_on(before, on)
    rewrites = default_names(original, compared=True) if rewrites is None else check_names(rewrites)
    after, counts = deployed_copy(before, rewrites)
    fused = _copy_on(after, on)

    tolerance = tolerance_of(before) if tolerance is None else tolerance
    on_random = compare(original, fused, random_images(original))
    require_equal(on_random, tolerance, 'random input')
    on_images, seen = _compare_images(cfg, original, fused, tolerance, num_images)
    config = _deployed_config(cfg, rewrites).pretty_text
    _check_loads(config, after)
    meta = {k: v for k, v in (loaded.get('meta') or {}).items() if k == 'dataset_meta'}
    state = after.state_dict()
    meta[STAMP] = make_stamp(state, str(checkpoint), rewrites=list(rewrites))
    make_folder(out.parent)
    write_checkpoint(dict(meta=meta, state_dict=state), out)
    with atomic_file(out.with_suffix('.py')) as temporary:
        temporary.write_text(config, encoding='utf-8')
    return FuseReport(
        counts=counts,
        parameters_before=_num_parameters(before),
        parameters_after=_num_parameters(after),
        on_random=on_random,
        on_images=on_images,
        num_images=seen,
        checkpoint=out,
        config=out.with_suffix('.py'),
    )


def load_training_model(cfg: Config, checkpoint: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model in training form; also return the content of the checkpoint.

    Raises:
        CheckpointError: If the checkpoint does not fit the config or is fused already.
    """
    check_model(cfg)
    loaded = read_checkpoint(checkpoint)
    state = state_dict_of(loaded)
    if type_name(cfg.model) == 'DeployedModel' or is_fused(state):
        raise CheckpointError(
            f'{checkpoint if is_fused(state) else cfg.filename} is fused already; give the '
            'training config and the training checkpoint'
        )
    return build_model(cfg, state, str(checkpoint)), loaded


def _copy_on(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model on another device; the model itself if it is on the CPU."""
    return model if device.type == 'cpu' else copy.deepcopy(model).to(device)


def _compare_images(
    cfg: Config, before: Any, after: nn.Module, tolerance: float, count: int
) -> tuple[Difference | None, int]:
    """Compare on up to ``count`` test images; return the worst difference and image count."""
    worst, seen = None, 0
    for inputs in test_inputs(cfg, before, count):
        found = compare(before, after, inputs)
        require_equal(found, tolerance, f'image {seen} of the test set')
        worst, seen = found if worst is None else worst.merge(found), seen + 1
    return worst, seen


def test_inputs(cfg: Config, model: Any, count: int) -> Iterator[Tensor]:
    """Yield preprocessed test images (1, C, H, W), cropped to the sliding window, if any.

    Yields none if the data are not there.

    Raises:
        ValueError: If a file cannot be loaded.
    """
    height, width = (cfg.model.get('test_cfg') or {}).get('crop_size') or (None, None)
    for image in _test_images(cfg, count) if count else ():
        inputs = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
        yield inputs[..., :height, :width]


def _test_images(cfg: Config, count: int) -> Iterator[Tensor]:
    """Yield test images (C, H, W) from the pipeline; none if the data are not there.

    Raises:
        ValueError: If a file cannot be loaded.
    """
    settings = first_test_set(cfg)
    root = settings.get('data_root') or (settings.get('data_prefix') or {}).get('img_path')
    if root and not os.path.isdir(root):
        return
    file = 'the data set'
    try:
        dataset = build_test_set(cfg)
        for i in range(min(count, len(dataset))):
            file = dataset.get_data_info(i).get('img_path', f'image {i}')
            inputs = dataset[i]['inputs']  # several views in a test-time augmentation
            yield inputs[0] if isinstance(inputs, (list, tuple)) else inputs
    except Exception as error:  # mmcv, OpenCV and Pillow raise different types
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())
        raise ValueError(
            f'test_dataloader: {file} or its labels cannot be loaded: {reason}. Fix the data, or '
            'compare on random input only (--images 0)'
        ) from error


def _deployed_config(cfg: Config, rewrites: Sequence[str]) -> Config:
    """The config that evaluates the fused checkpoint: no training, no deploy hook."""
    deployed = _writable(cfg.to_dict())
    for key in (*TRAINING_KEYS, 'model', 'data_preprocessor'):  # the latter is in the model
        deployed.pop(key, None)
    hooks = deployed.get('custom_hooks') or []
    deployed['custom_hooks'] = [h for h in hooks if type_name(h) != 'RepVGGDeployHook']
    scope = cfg.get('default_scope') or 'mmseg'
    model = deployed_config(_writable(model_settings(cfg)), scope, rewrites)
    return Config(dict(deployed, load_from=None, resume=False, model=model))


class _NotFinite(float):
    """Infinity or NaN, written into a config as Python reads it."""

    def __repr__(self) -> str:
        return f"float('{float(self)}')"


def _writable(settings: Any) -> Any:
    """Copy settings so that the text of a config can hold them.

    Classes and functions (of Python-style configs) become dotted names.
    """
    if isinstance(settings, Mapping):
        return {key: _writable(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(_writable, settings))
    if isinstance(settings, type) or inspect.isroutine(settings):
        return f'{settings.__module__}.{settings.__qualname__}'
    if isinstance(settings, float) and not math.isfinite(settings):
        return _NotFinite(settings)
    return settings


def _check_loads(config: str, fused: nn.Module) -> None:
    """Build the fused form from the text of its config and check that it computes the same."""
    rebuilt = MODELS.build(Config.fromstring(config, '.py').model)
    load_strictly(rebuilt, fused.state_dict(), 'the fused checkpoint')
    rebuilt.to(next(fused.parameters()).dtype)
    found = compare(fused, rebuilt, random_images(fused, seed=1))
    require_equal(found, torch.finfo(torch.float32).eps, 'the fused model built from its config')


def _num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
