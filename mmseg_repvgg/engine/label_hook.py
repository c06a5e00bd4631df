"""LabelCheckHook: refuses label maps with unknown ids or of the wrong size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor

from mmseg_repvgg.checks import preview
from mmseg_repvgg.engine.hook_helpers import acts, unwrapped
from mmseg_repvgg.engine.label_readers import LabelReader, evaluation_readers, training_readers

SHOWN = 5
"""How many ids an error lists."""
BATCHES_BEFORE_WARNING = 10
"""Training batches after which the hook warns if all labels are 0 or ignored."""
FIX = (
    'Convert the labels (Cityscapes: mmseg-repvgg prepare-cityscapes PATH --force), or set '
    'num_classes and ignore_index of the heads and ignore_index of the evaluators'
)


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Refuse labels that the heads or the metrics do not know; the error names the file.

    Without this hook, unknown ids stop training on a GPU with a device-side assert that names no
    file and leaves the GPU unusable, and they give wrong scores in an evaluation. The hook checks
    the labels of every batch after the pipeline, and the value they are padded with. This takes
    some milliseconds. In training, labels must fit every head; in an evaluation, the decode head
    and every metric with an ``ignore_index``. Data without label maps are not checked.

    It warns if a head's number of classes differs from the number of class names in the data set,
    and if all labels are 0 or ignored, as in masks of 0 and 255.

    Raises:
        ValueError: On an id that is neither a class nor ignored, or a label map that does not fit
            its image.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._batches = 0
        self._seen: set[int] = set()

    def before_train(self, runner: Runner) -> None:
        """Compare the heads with the class names, and with the metrics of the validation."""
        heads = training_readers(runner.model)
        self._start(runner, runner.train_loop, heads)
        metrics = evaluation_readers(None, runner.val_loop)
        for reader in [*heads, *metrics] if heads and acts(self, runner) else []:
            if reader.ignored != heads[0].ignored:
                runner.logger.warning(
                    f'{heads[0]}. {reader}. Labels that only one of them ignores are an error; set '
                    'the same ignore_index in every head and evaluator'
                )

    def _before_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """Before an evaluation, compare the decode head with the class names."""
        if mode != 'train':
            self._start(runner, getattr(runner, f'{mode}_loop'), _readers(runner, mode))

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = 'train'
    ) -> None:
        """Check ids and sizes, and in training the padding."""
        readers, samples = _readers(runner, mode), _labelled_samples(data_batch)
        if not readers or not samples or not acts(self, runner):
            return
        images = data_batch['inputs']
        # In training, crops and flips act on image and labels alike. In an evaluation, images are
        # resized, labels keep the original size.
        sizes = (
            [image.shape[-2:] for image in images]
            if mode == 'train'
            else [sample.metainfo.get('ori_shape') for sample in samples]
        )
        for sample, size in zip(samples, sizes, strict=True):
            _check_size(sample, size)
        self._check_ids(samples, readers)
        if mode == 'train':
            _check_padding(unwrapped(runner.model), images, readers)
            if self._batches == BATCHES_BEFORE_WARNING:
                self._warn_of_masks(runner, readers)

    def _after_epoch(self, runner: Runner, mode: str = 'train') -> None:
        """After an evaluation, warn if all labels were 0 or ignored."""
        if mode != 'train':
            self._warn_of_masks(runner, _readers(runner, mode))

    def _start(self, runner: Runner, loop: Any, readers: Sequence[LabelReader]) -> None:
        self._batches, self._seen = 0, set()
        meta = getattr(loop.dataloader.dataset, 'metainfo', None) or {}
        names = meta.get('classes') or ()
        for reader in readers:
            if names and reader.num_classes != len(names) and acts(self, runner):
                runner.logger.warning(
                    f'{reader.name} has num_classes={reader.num_classes}, the data set has '
                    f'{len(names)} class names. Set num_classes={len(names)} in every head, unless '
                    'this is meant'
                )

    def _check_ids(self, samples: Iterable[Any], readers: Sequence[LabelReader]) -> None:
        self._batches += 1
        for sample in samples:
            ids = _ids(sample.gt_sem_seg.data)
            self._seen.update(ids)
            for reader in readers:
                wrong = [label for label in ids if not reader.knows(label)]
                if wrong:
                    raise ValueError(
                        f'{_file(sample)} has the ids {preview(wrong, SHOWN)}; {reader}. {FIX}'
                    )

    def _warn_of_masks(self, runner: Runner, readers: Sequence[LabelReader]) -> None:
        ignored = frozenset[int]().union(*(reader.ignored for reader in readers))
        if self._seen & ignored and self._seen <= ignored | {0} and acts(self, runner):
            found = ' or '.join(map(str, sorted(self._seen)))
            runner.logger.warning(
                f'all labels of {self._batches} batches are {found}, and '
                f'{", ".join(map(str, sorted(self._seen & ignored)))} is ignored: at most one '
                'class is learned and scored. In masks of 0 and 255 convert 255 to 1 (label // 255)'
            )


def _readers(runner: Runner, mode: str) -> list[LabelReader]:
    if mode == 'train':
        return training_readers(runner.model)
    return evaluation_readers(runner.model, getattr(runner, f'{mode}_loop'))


def _labelled_samples(data_batch: Any) -> list[Any]:
    """Return a batch's samples that have a label map; with test-time augmentation, each once."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    if not isinstance(samples, list):
        return []
    if samples and isinstance(samples[0], list):
        samples = samples[0]
    return [s for s in samples if getattr(getattr(s, 'gt_sem_seg', None), 'data', None) is not None]


def _file(sample: Any) -> str:
    return sample.metainfo.get('seg_map_path') or 'a label map'


def _check_size(sample: Any, size: Sequence[int] | None) -> None:
    shape = tuple(sample.gt_sem_seg.data.shape)
    if shape != (1, *(size or shape[-2:])):
        raise ValueError(
            f'{_file(sample)} gives labels of the shape {shape} for an image of '
            f'{tuple(size or ())}; a label map must be one channel as large as its image'
            f'{_exif_hint(sample.metainfo.get("img_path"))}'
        )


def _exif_hint(path: str | None) -> str:
    """Say that an image file has an orientation in its EXIF data, which labels do not have."""
    try:
        with Image.open(path or '') as image:
            orientation = image.getexif().get(0x0112, 1)
    except OSError:  # no file of this machine, or a format that Pillow does not read
        return ''
    if orientation == 1:
        return ''
    return (
        f'. {path} has the EXIF orientation {orientation}, by which mmcv turns the image and not '
        "its labels: turn the labels, or set color_type='color_ignore_orientation' in "
        'LoadImageFromFile of every pipeline if they were drawn on the image as it is stored'
    )


def _ids(labels: Tensor) -> list[int]:
    """The ids in a label map, in ascending order."""
    flat = labels.flatten()
    if flat.numel() and not flat.is_floating_point() and flat.min() >= 0 and flat.max() < 2**16:
        return flat.long().bincount().nonzero().flatten().tolist()  # faster than sorting
    return flat.unique().tolist()


def _check_padding(model: Any, images: Any, readers: Sequence[LabelReader]) -> None:
    """Raise if mmseg's preprocessor pads labels with a value that a head does not know."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    value = getattr(preprocessor, 'seg_pad_val', None)
    unknown = [reader for reader in readers if value is not None and not reader.knows(value)]
    if unknown and _is_padded(preprocessor, [tuple(image.shape[-2:]) for image in images]):
        raise ValueError(
            f'data_preprocessor pads labels with seg_pad_val={value}; {unknown[0]}. Set '
            'seg_pad_val to the ignore_index of the heads'
        )


def _is_padded(preprocessor: Any, sizes: Sequence[tuple[int, ...]]) -> bool:
    """Whether mmseg's preprocessor pads images of these sizes, (height, width), in training."""
    if preprocessor.size is not None:
        height, width = preprocessor.size[-2:]
        return any(size[0] < height or size[1] < width for size in sizes)
    divisor = preprocessor.size_divisor or 1
    return len(set(sizes)) > 1 or any(side % divisor for side in sizes[0])
