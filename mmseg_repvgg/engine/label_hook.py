"""LabelCheckHook: no label image with unknown ids, or of another size, is used."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

SHOWN = 5
"""How many ids an error lists."""


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Refuse labels that the heads were not built for, naming the file.

    Without it unknown ids end a training on the GPU with a device-side assert, which names nothing
    and leaves the GPU unusable, and are left out of the mIoU silently in an evaluation. It looks at
    every batch before the model does: some milliseconds. Data without label maps are not looked at.

    Raises:
        ValueError: On an id that is no class and not ignored, or a label map that does not fit its
            image.
    """

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check ids and sizes."""
        self._check(runner, data_batch, is_training=True)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check ids."""
        self._check(runner, data_batch)

    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Check ids."""
        self._check(runner, data_batch)

    def _check(self, runner: Runner, data_batch: Any, is_training: bool = False) -> None:
        head = _head(runner.model)
        samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
        if head is None or not isinstance(samples, list):
            return
        for i, sample in enumerate(samples):
            labels = getattr(getattr(sample, 'gt_sem_seg', None), 'data', None)
            if labels is None:
                continue
            file = sample.metainfo.get('seg_map_path', 'a label map')
            # training crops image and labels alike; in tests the labels keep the original size
            original = sample.metainfo.get('ori_shape')
            size = data_batch['inputs'][i].shape[-2:] if is_training else original
            if tuple(labels.shape) != (1, *(size or labels.shape[-2:])):
                raise ValueError(
                    f'{file} gives labels of the shape {tuple(labels.shape)} for an image of '
                    f'{tuple(size)}; a label map is one channel as large as its image'
                )
            wrong = labels[(labels != head.ignore_index) & ~_is_class(labels, head.num_classes)]
            if wrong.numel():
                ids = wrong.unique().tolist()
                raise ValueError(
                    f'{file} has the ids {", ".join(map(str, ids[:SHOWN]))}'
                    f'{", ..." * (len(ids) > SHOWN)}; the model has the classes 0 to '
                    f'{head.num_classes - 1}, and {head.ignore_index} is ignored. Convert the '
                    'labels (Cityscapes: tools/prepare_cityscapes.py --force), or set num_classes '
                    'of the heads'
                )


def _is_class(labels: Any, num_classes: int) -> Any:
    return (labels >= 0) & (labels < num_classes)


def _head(model: Any) -> Any:
    """The (last) decode head of a segmentor, or None."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    head = getattr(model, 'decode_head', None)
    last = head[-1] if head is not None and not hasattr(head, 'num_classes') else head
    return last if hasattr(last, 'ignore_index') else None
