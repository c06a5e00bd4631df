"""DataCheckHook: refuses data sets that do not fit the model, before the first iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from mmseg_repvgg.checks import check_integer
from mmseg_repvgg.datasets.inspect_data import inspect, parts
from mmseg_repvgg.engine.hook_helpers import acts, unwrapped
from mmseg_repvgg.engine.label_readers import LabelReader, evaluation_readers, training_readers


@HOOKS.register_module()
class DataCheckHook(Hook):
    """Check the training and validation sets before a training, and the test set before a test.

    It checks that every image has a mask, reads some of them, and compares ids and number of
    classes with the heads and metrics. :class:`LabelCheckHook` checks every batch, but sees a wrong
    validation set only after hours. ``mmseg-repvgg check-data`` reads all files.

    Args:
        images: How many images and masks are read in each data set; 0 switches the hook off.

    Raises:
        ValueError: A line for each problem, with its fix.
    """

    priority = 'VERY_HIGH'

    def __init__(self, images: int = 20) -> None:
        check_integer('images', images, 0)
        self.images = images

    def before_train(self, runner: Runner) -> None:
        """Check the training and the validation set."""
        model, train = runner.model, runner.train_loop.dataloader.dataset
        checks = [('train_dataloader', train, training_readers(model))]
        if runner.val_loop is not None:
            readers = evaluation_readers(model, runner.val_loop)
            checks.append(('val_dataloader', runner.val_loop.dataloader.dataset, readers))
        if self._check(runner, checks):
            notes = padded_crops(model, train)
            if runner.val_loop is not None:
                notes += stretched_images(model, train, runner.val_loop.dataloader.dataset)
            for note in notes:
                runner.logger.warning(note)

    def before_test(self, runner: Runner) -> None:
        """Check the test set."""
        readers = evaluation_readers(runner.model, runner.test_loop)
        self._check(runner, [('test_dataloader', runner.test_loop.dataloader.dataset, readers)])

    def _check(
        self, runner: Runner, checks: Sequence[tuple[str, Any, Sequence[LabelReader]]]
    ) -> bool:
        checks = [check for check in checks if check[2]]  # other models than segmentors have none
        if not (checks and self.images and acts(self, runner)):
            return False
        reports = [inspect(*check, limit=self.images) for check in checks]
        for report in reports:
            for note in report.notes:
                runner.logger.warning(f'{report.name}: {note}')
        if problems := [problem for report in reports for problem in report.problems]:
            raise ValueError('\n'.join(dict.fromkeys(problems)))
        return True


def padded_crops(model: Any, dataset: Any) -> list[str]:
    """A line if mmseg's preprocessor pads every crop of a training set."""
    size = getattr(getattr(unwrapped(model), 'data_preprocessor', None), 'size', None)
    crop = _crop_size(dataset)
    if not size or not crop:
        return []
    full = tuple(size[-2:])
    if all(side >= limit for side, limit in zip(crop, full, strict=True)):
        return []
    return [
        f'every crop of {crop} is padded with ignored pixels to data_preprocessor.size={full}, '
        f'which takes time and memory. Set model.data_preprocessor.size={crop}'
    ]


def stretched_images(model: Any, train: Any, evaluated: Any) -> list[str]:
    """A line if ``align_corners`` fits the crops of a training but not its whole images.

    With ``align_corners=True`` a feature map of output stride 8 fits images of 8 k + 1 pixels.
    """
    model, crop = unwrapped(model), _crop_size(train)
    if not any(getattr(module, 'align_corners', False) for module in model.modules()):
        return []
    if not crop or any(side % 8 != 1 for side in crop) or model.test_cfg.get('mode') != 'whole':
        return []
    inputs = evaluated[0].get('inputs')
    size = tuple(getattr(inputs, 'shape', ())[-2:])
    if all(side % 8 == 1 for side in size):
        return []
    return [
        f'align_corners=True fits sides of 8 k + 1 pixels, as the crops of {crop} have, but whole '
        f'images are evaluated at {size}: predictions shift by up to 7 pixels. Resize images to '
        "8 k + 1, evaluate in windows (test_cfg.mode='slide'), or train with align_corners=False "
        'and crops of 8 k'
    ]


def _crop_size(dataset: Any) -> tuple[int, ...] | None:
    """Height and width of the last crop in the pipeline of a training set of mmseg."""
    crops = [
        tuple(transform.crop_size)
        for part in parts(dataset)
        for transform in part.pipeline.transforms
        if getattr(transform, 'crop_size', None) is not None
    ]
    return crops[-1] if crops else None
