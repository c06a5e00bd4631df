"""Memory of a training step, estimated without computing anything (tools/estimate_memory.py)."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from mmseg_repvgg.analysis.live_bytes import LiveBytes, storage_key
from mmseg_repvgg.checks import check_integer, check_model, check_size
from mmseg_repvgg.deploy.describe_model import num_channels
from mmseg_repvgg.deploy.load_segmentor import settings_of_preprocessor
from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.engine.data_settings import data_sets

STEPS = 2  # the optimizer has its state from the first step on
LABEL_ACCURACY = 'mmseg.models.decode_heads.decode_head.accuracy'
"""mmseg's heads log it with the loss; what it saves for a backward pass is freed at once."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step in float32 on one device."""

    parameters: int  # and buffers
    gradients: int
    optimizer: int  # its state
    saved: int  # what autograd keeps from forward to backward, images included
    peak: int  # most bytes at one time, with all of the above and temporary results

    def __str__(self) -> str:
        titles = dict(saved='saved for backward', peak='peak of a step')
        return '\n'.join(
            f'{titles.get(name, name):20} {value / 2**20:9.0f} MiB'
            for name, value in vars(self).items()
        )


def training_input(
    cfg: Config, batch: int | None = None, size: Sequence[int] | None = None
) -> tuple[int, tuple[int, int]]:
    """Batch per device and size (height, width) of a training, by default the config's.

    Raises:
        ValueError: If the config has none, or the given ones are wrong.
    """
    check_model(cfg)
    if batch is None:
        batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    if size is None:
        size = (settings_of_preprocessor(cfg) or {}).get('size') or _cropped(cfg)
    if batch is None or size is None:
        option = '--batch' if batch is None else '--crop'
        raise ValueError(f'{cfg.filename} does not say what it trains on: give {option}')
    check_integer('batch', batch, 1)
    check_size('crop', size)
    return batch, (size[0], size[1])


def _cropped(cfg: Config) -> tuple[int, int] | None:
    """The size of the last crop in the training pipeline."""
    for _, settings in data_sets((cfg.get('train_dataloader') or {}).get('dataset')):
        for transform in reversed(settings.get('pipeline') or ()):
            size = transform.get('crop_size')
            if size is None and type_name(transform) == 'RandomResizedCrop':
                size = transform.get('scale')
            if size is not None:
                return (size, size) if isinstance(size, int) else size
    return None


class AllChosen(FakeTensorMode):
    """Fake tensors on which losses that choose pixels by their values (OHEM) choose all.

    Counts of pixels (of void, for the mean over the others) stay unknown: PyTorch's symbols, which
    can be divided by, and raise an error where the memory would depend on them.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer what depends on values: every element is nonzero, every bool True."""
        if func is torch.ops.aten.nonzero.default:
            return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.long)
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype is torch.bool:
            return True
        return super().dispatch(func, types, args, kwargs)


def estimate(cfg: Config, batch: int, size: tuple[int, int]) -> Memory:
    """Run two training steps of a config's model with fake tensors, which take no memory.

    Heads, losses and optimizer are the config's; see :class:`AllChosen`. Not included are the
    workspaces of convolutions and other kernels (cuDNN, oneDNN), fragmentation and rounding by the
    allocator, the CUDA context, buckets of distributed training, and data loading.

    Args:
        cfg: A config of a segmentor of mmseg or a classifier of mmpretrain.
        batch: Images per device.
        size: Height and width in pixels of the crops.

    Raises:
        ValueError: On a wrong size, or if the loss depends on values.
    """
    check_integer('batch', batch, 1)
    check_size('size', size)
    with AllChosen(shape_env=ShapeEnv()):
        model, optimizer = _build(cfg)
        held = [*model.parameters(), *model.buffers()]
        try:
            with LiveBytes(held) as live:
                saved = _train(model, optimizer, batch, size)
        except RuntimeError as error:
            raise ValueError(
                f'the training step of {cfg.filename} does not run without values, so its memory '
                f'cannot be estimated ({" ".join(str(error).split())}); measure it '
                '(mmseg_repvgg.analysis.memory.measure)'
            ) from error
        return Memory(
            parameters=_bytes(held),
            gradients=_bytes([p for p in model.parameters() if p.requires_grad]),
            optimizer=_bytes(tree_leaves(list(optimizer.optimizer.state.values()))),
            saved=saved,
            peak=live.peak,
        )


def measure(cfg: Config, batch: int, size: tuple[int, int]) -> int:
    """Run the same steps for real; returns the peak of the bytes that PyTorch allocates.

    It uses a GPU if there is one. The process takes more memory there (see :func:`estimate`).
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        with torch.device('cuda'):
            _train(*_build(cfg), batch, size)
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        _train(*_build(cfg), batch, size)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    changes = [event for event in events if event['name'] == '[memory]']
    changes.sort(key=lambda event: event['ts'])
    return max(accumulate(event['args']['Bytes'] for event in changes))


def _build(cfg: Config) -> tuple[nn.Module, Any]:
    """The model, not initialized, in training mode, and its optimizer."""
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    logging.disable(logging.INFO)  # the optimizer logs the settings of every parameter
    try:
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        wrapper = dict(cfg.optim_wrapper, type='OptimWrapper')
        wrapper.pop('loss_scale', None)
        optimizer = build_optim_wrapper(model, wrapper)
    finally:
        logging.disable(logging.NOTSET)
    model.train()
    return model, optimizer


def _train(model: Any, optimizer: Any, batch: int, size: tuple[int, int]) -> int:
    """Train for :data:`STEPS`; returns the bytes saved for the last backward pass."""
    for _ in range(STEPS):
        images = torch.zeros(batch, num_channels(model), *size)
        samples = [_labelled(model, size) for _ in range(batch)]
        with _saved_bytes(model) as saved, mock.patch(LABEL_ACCURACY, _no_accuracy):
            loss, _ = model.parse_losses(model(images, samples, mode='loss'))
            total = saved()
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()
    return total


def _no_accuracy(logits: Tensor, *_args: Any, **_options: Any) -> Tensor:
    return logits.new_zeros(1)


def _labelled(model: Any, size: tuple[int, int]) -> Any:
    """A data sample of class 0, for a segmentor or a classifier."""
    if not hasattr(model, 'decode_head'):
        from mmpretrain.structures import DataSample

        return DataSample().set_gt_label(torch.zeros(1, dtype=torch.long))
    from mmseg.structures import SegDataSample

    return SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, *size, dtype=torch.long)))


@contextmanager
def _saved_bytes(model: nn.Module) -> Iterator[Any]:
    """Yield a function that returns the bytes saved by autograd so far, without parameters."""
    own = {storage_key(p) for p in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if storage_key(tensor) not in own:
            sizes[storage_key(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(sizes.values())


def _bytes(values: list[Any]) -> int:
    tensors = [value for value in values if isinstance(value, Tensor)]
    return sum({storage_key(t): t.untyped_storage().nbytes() for t in tensors}.values())
