"""Inspects a built data set: class names, names of files, and the files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mmseg_repvgg.checks import preview
from mmseg_repvgg.datasets.data_report import DataReport
from mmseg_repvgg.datasets.inspect_files import PairReader

if TYPE_CHECKING:
    from mmseg_repvgg.engine.label_readers import LabelReader


def inspect(
    name: str,
    dataset: Any,
    readers: Sequence[LabelReader],
    limit: int | None = None,
    progress: bool = False,
) -> DataReport:
    """Inspect a data set: all names of files, and some or all of the files.

    Data sets that are not mmseg's ``BaseSegDataset``, or are not on a local disk, are left out.

    Args:
        name: What the data set is called in messages.
        dataset: The built data set; also in wrappers (``ConcatDataset``).
        readers: The heads and metrics that read its labels.
        limit: How many images and label maps are read, spread over the data set; None: all.
        progress: Show a progress bar, on a terminal only.
    """
    meta = getattr(dataset, 'metainfo', None) or {}
    classes = tuple(map(str, meta.get('classes') or ()))
    ignored = frozenset[int]().union(*(reader.ignored for reader in readers))
    report = DataReport(name, classes, meta.get('palette') or (), ignored)
    _check_readers(report, readers)
    for part in parts(dataset):
        loader = label_loader(part.pipeline.transforms)
        samples = [part.get_data_info(i) for i in range(len(part))]
        if not samples:
            report.problems.append(no_images(name, part))
            continue
        complete = _check_names(report, part, samples, loader is not None)
        report.images += [sample['img_path'] for sample in samples]
        if loader is not None:
            own_images = not any(map(_loads_images, part.pipeline.transforms))
            pairs = PairReader(report, loader, readers, own_images)
            pairs.read_all(complete, limit, progress)
    never = [name for i, name in enumerate(classes) if not report.pixels[i]]
    if never and not limit and report.samples:
        report.notes.append(f'no mask has the classes {preview(never, 10)}')
    return report


def parts(dataset: Any) -> Iterator[Any]:
    """Yield the data sets of mmseg, on a local disk, inside wrappers."""
    inner = vars(dataset).get('datasets') or [vars(dataset).get('dataset')]
    if inner[0] is not None:
        for part in inner:
            yield from parts(part)
    elif hasattr(dataset, 'seg_map_suffix') and not dataset.backend_args:
        dataset.full_init()
        if '://' not in str(dataset.data_root):
            yield dataset


def _loads_images(transform: Any) -> bool:
    """Whether a transform loads images as mmcv does."""
    from mmcv.transforms import LoadImageFromFile

    return type(transform) is LoadImageFromFile


def label_loader(transforms: Iterable[Any]) -> Any:
    """The transform that loads label maps, also inside test-time augmentation; None without."""
    # not above: mmcv imports mmengine, whose import registers the hook that imports this module
    from mmcv.transforms import LoadAnnotations

    for transform in transforms:
        if isinstance(transform, LoadAnnotations):
            return transform
        nested = getattr(transform, 'transforms', None) or getattr(transform, 'subroutines', None)
        if isinstance(nested, (list, tuple)) and (found := label_loader(nested)):
            return found
    return None


def _check_readers(report: DataReport, readers: Sequence[LabelReader]) -> None:
    count = len(report.classes)
    if count == 1:
        name = report.classes[0]
        report.notes.append(
            f'one class name, {name!r}: mmseg then scores the accuracy, not the IoU of the class; '
            f"name the background too, classes=('background', {name!r})"
        )
    for reader in readers:
        if count > 1 and reader.num_classes != count:
            report.problems.append(
                f'{reader.name} has num_classes={reader.num_classes}, {report.name} has {count} '
                f'class names. Set num_classes={count} in every head, or name all classes in '
                'metainfo'
            )
        for label in sorted(reader.ignored & set(range(count))):
            report.notes.append(
                f'{reader.name} ignores the class {label} ({report.classes[label]}): '
                f'ignore_index={label} is right only for void'
            )


def no_images(name: str, part: Any) -> str:
    """Say why a data set of mmseg has no images."""
    if part.ann_file:
        return f'{name} is empty: {part.ann_file} has no lines; write a name without suffix in each'
    folder = part.data_prefix.get('img_path') or '.'
    found = Counter(os.path.splitext(file)[1] for file in _files_in(folder))
    has = preview(f'{n} {suffix or "without suffix"}' for suffix, n in found.most_common())
    return (
        f'{name} is empty: no file in {folder} ends in img_suffix={part.img_suffix!r}; the folder '
        f'holds {has}. Set img_suffix, or the folder of the images'
    )


def _check_names(
    report: DataReport, part: Any, samples: list[dict[str, Any]], labelled: bool
) -> list[dict[str, Any]]:
    """Report images and masks without the other; return the samples that have both."""
    total = len(samples)
    gone = [s['img_path'] for s in samples if not os.path.isfile(s['img_path'])]
    if gone:
        bare = gone[0][: len(gone[0]) - len(part.img_suffix)]
        hint = 'names have no suffix there' if os.path.isfile(bare) else 'correct the list'
        report.problems.append(
            f'{len(gone)} of {total} images of {part.ann_file or report.name} are missing '
            f'({preview(gone)}): {hint}, img_suffix={part.img_suffix!r} is added to each'
        )
    samples = [s for s in samples if s['img_path'] not in set(gone)]
    if not labelled:
        return samples
    masks = {s['seg_map_path'] for s in samples}
    lost = {path for path in masks if not os.path.isfile(path)}
    alone = [s['img_path'] for s in samples if s['seg_map_path'] in lost]
    if alone:
        report.problems.append(
            f'{len(alone)} of {total} images have no mask ({preview(alone)}); the first should be '
            f'{next(s["seg_map_path"] for s in samples if s["seg_map_path"] in lost)}'
            + _suffix_hint(part, alone, samples)
        )
    folder = part.data_prefix.get('seg_map_path') or '.'
    if not part.ann_file and os.path.isdir(folder):
        here = (os.path.join(folder, f) for f in _files_in(folder))
        spare = sorted(p for p in here if p.endswith(part.seg_map_suffix) and p not in masks)
        if spare:
            report.notes.append(f'{len(spare)} masks have no image ({preview(spare)})')
    return [s for s in samples if s['seg_map_path'] not in lost]


def _suffix_hint(part: Any, alone: Sequence[str], samples: Sequence[dict[str, Any]]) -> str:
    """What the files of the mask folder end in that begin as the images without a mask do."""
    folder = os.path.dirname(samples[0]['seg_map_path'])
    names = _files_in(folder) if os.path.isdir(folder) else []
    ends: Counter[str] = Counter()
    for path in alone[:5]:
        stem = os.path.basename(path).removesuffix(part.img_suffix)
        ends.update(name.removeprefix(stem) for name in names if name.startswith(stem))
    if not ends:
        return '. Add the masks, or remove the images'
    return f'. Is seg_map_suffix={ends.most_common(1)[0][0]!r} instead of {part.seg_map_suffix!r}?'


def _files_in(folder: str) -> list[str]:
    """Files in a folder and its subfolders, relative to it, without hidden ones."""
    return [
        os.path.normpath(os.path.join(os.path.relpath(root, folder), name))
        for root, _, names in os.walk(folder)
        for name in names
        if not name.startswith('.')
    ]
