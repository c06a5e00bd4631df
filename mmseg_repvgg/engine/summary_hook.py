"""SummaryHook: logs what is trained or tested in a few lines."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmseg_repvgg.engine.hook_helpers import acts, unwrapped


class SummaryHook(Hook):
    """Log the model, the data, the device, the length and the work folder before the first step."""

    priority = 'VERY_LOW'

    def before_train(self, runner: Runner) -> None:
        """Log them for a training."""
        loop = runner.train_loop
        data = f'{_count(loop)} for training, in batches of {loop.dataloader.batch_size}'
        length = f'{loop.max_iters} iterations'
        if isinstance(loop, EpochBasedTrainLoop):
            length = f'{loop.max_epochs} epochs, {length}'
        if loop.iter:
            length += f', resumed after {loop.iter}'
        if runner.val_loop is not None:
            data += f'; {_count(runner.val_loop)} for validation'
            unit = 'epochs' if isinstance(loop, EpochBasedTrainLoop) else 'iterations'
            length += f'; validation every {loop.val_interval} {unit}'
        self._log(runner, 'training', data=data, length=length)

    def before_test(self, runner: Runner) -> None:
        """Log them for a test."""
        self._log(runner, 'test', data=_count(runner.test_loop))

    def _log(self, runner: Runner, title: str, **rows: str) -> None:
        if not acts(self, runner):
            return
        rows = dict(
            model=_model(unwrapped(runner.model)),
            **rows,
            device=_device(runner),
            folder=f'{runner.work_dir}; full log: {runner.timestamp}/{runner.timestamp}.log',
        )
        lines = [f'  {name:8}{value}' for name, value in rows.items()]
        runner.logger.info('\n'.join([title, *lines]))


def _count(loop: Any) -> str:
    return f'{len(loop.dataloader.dataset)} images'


def _model(model: Any) -> str:
    parts = [type(m).__name__ for name, m in model.named_children() if name != 'data_preprocessor']
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return f'{type(model).__name__} ({", ".join(parts)}), {millions:.2f} M parameters'


def _device(runner: Runner) -> str:
    device = next((p.device for p in runner.model.parameters()), torch.device('cpu'))
    name = f'CPU (threads: {torch.get_num_threads()})'
    if device.type == 'cuda':
        name = f'{device}, {torch.cuda.get_device_name(device)}'
    return f'{name}; {runner.world_size} processes' if runner.world_size > 1 else name
