"""DistillationHook: a segmentor also learns from the logits of a larger one."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from mmseg_repvgg.checks import is_positive
from mmseg_repvgg.engine.hook_helpers import acts, unwrapped
from mmseg_repvgg.reparam.rewrites import deployed_copy


def channel_wise_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Distance of two stacks of logits, each channel as a distribution over the pixels.

    Source: Shu et al. 2021, Channel-wise Knowledge Distillation for Dense Prediction
    (https://arxiv.org/abs/2011.13256), equations 3 and 4.

    Args:
        student: (N, C, H, W).
        teacher: The same shape.
        temperature: Larger ones make the distributions flatter.

    Returns:
        ``temperature``^2 times the Kullback-Leibler divergence, the mean over images and channels.
    """
    found, wanted = ((t / temperature).flatten(2).log_softmax(-1) for t in (student, teacher))
    divergence = nn.functional.kl_div(found, wanted, reduction='sum', log_target=True)
    return temperature**2 * divergence / (student.shape[0] * student.shape[1])


@HOOKS.register_module()
class DistillationHook(Hook):
    """Channel-wise distillation: the decode head also learns from a trained teacher's logits.

    The config of the model, its checkpoints, and testing are as without the hook. The teacher is
    fused, runs without gradients on the images that the student sees, and is in no checkpoint.

    Args:
        config: Config file of the teacher, a segmentor with the same classes and normalisation.
        checkpoint: Its trained weights, fused or not.
        loss_weight: Factor of the loss (3 in the paper, for logits).
        temperature: See :func:`channel_wise_loss` (4 in the paper).

    Raises:
        ValueError: On a wrong argument; at the start of a training, if the student is no
            encoder-decoder of mmseg, or differs from the teacher in classes or normalisation.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str,
        loss_weight: float = 3.0,
        temperature: float = 4.0,
    ) -> None:
        for name, value in (('loss_weight', loss_weight), ('temperature', temperature)):
            if not is_positive(value):
                raise ValueError(f'{name}={value!r} must be a positive number')
        self.config, self.checkpoint = str(config), str(checkpoint)
        self.loss_weight, self.temperature = loss_weight, temperature
        self.teacher: Any = None
        self._logits: list[Tensor] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> DistillationHook:
        """Copies of the student, such as the one that is fused and evaluated, share the teacher."""
        return self

    def before_train(self, runner: Runner) -> None:
        """Load the teacher, and let the student's loss ask it."""
        if not acts(self, runner):
            return
        self.after_train(runner)  # of a training that broke off
        student = unwrapped(runner.model)
        head = _last_head(student)
        self.teacher = self._load()
        _check_alike(student, self.teacher, Path(self.config).name)
        self._handle = head.conv_seg.register_forward_hook(self._keep)
        student.loss = partial(self._loss, student.loss)
        runner.logger.info(f'{self.checkpoint} teaches by its logits: {self.loss_weight} times')

    def after_train(self, runner: Runner) -> None:
        """Leave the student as it was."""
        if self.teacher is not None:
            self._handle.remove()
            del unwrapped(runner.model).loss
            self.teacher = None

    def _load(self) -> Any:
        # not at the top: that module needs a hook of this package
        from mmseg_repvgg.deploy.load_segmentor import load_segmentor
        from mmseg_repvgg.engine.launch import load_config

        teacher, _ = load_segmentor(load_config(self.config), self.checkpoint)
        return deployed_copy(teacher)[0].requires_grad_(False)

    def _keep(self, module: nn.Module, inputs: Any, logits: Tensor) -> None:
        if module.training:
            self._logits.append(logits)

    def _loss(self, own: Any, inputs: Tensor, data_samples: Any) -> dict[str, Tensor]:
        self._logits.clear()
        losses = own(inputs, data_samples)
        (logits,) = self._logits
        self._logits.clear()
        with torch.no_grad():
            wanted = self.teacher.to(logits.device)(inputs, mode='tensor')
        if wanted.shape[2:] != logits.shape[2:]:
            wanted = nn.functional.interpolate(wanted, logits.shape[2:], mode='bilinear')
        loss = channel_wise_loss(logits.float(), wanted.float(), self.temperature)
        return dict(losses, loss_distillation=self.loss_weight * loss)


def _last_head(student: Any) -> Any:
    """The decode head that gives the result: the last one of a cascade."""
    head = getattr(student, 'decode_head', None)
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    if not isinstance(getattr(head, 'conv_seg', None), nn.Module):
        raise ValueError(
            'DistillationHook needs an encoder-decoder of mmseg whose decode head ends in '
            f'conv_seg; {type(student).__name__} has {type(head).__name__}'
        )
    return head


def _check_alike(student: Any, teacher: Any, source: str) -> None:
    """Raise ValueError unless teacher and student mean the same by an image and a class."""
    pairs = {'out_channels': [_last_head(m).out_channels for m in (student, teacher)]}
    for name in ('mean', 'std', 'channel_conversion'):
        values = [getattr(m.data_preprocessor, name, None) for m in (student, teacher)]
        pairs[name] = [v.flatten().tolist() if isinstance(v, Tensor) else v for v in values]
    for name, (own, other) in pairs.items():
        if own != other:
            raise ValueError(
                f'DistillationHook: the student has {name} {own}, but the teacher of {source} has '
                f'{other}; the two must have the same classes and the same normalisation'
            )
