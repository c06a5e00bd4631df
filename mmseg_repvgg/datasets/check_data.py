"""Checks the data sets of a config and draws them, for mmseg-repvgg check-data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, MODELS, init_default_scope

from mmseg_repvgg.atomic_files import writable_folder
from mmseg_repvgg.checks import check_model, preview
from mmseg_repvgg.datasets.data_pictures import draw_shares, draw_sheet
from mmseg_repvgg.datasets.data_report import DataReport
from mmseg_repvgg.datasets.inspect_data import inspect, label_loader, parts
from mmseg_repvgg.engine import data_settings
from mmseg_repvgg.engine.data_check_hook import padded_crops, stretched_images
from mmseg_repvgg.engine.label_readers import LabelReader, evaluation_readers, training_readers

SPLITS = ('train', 'val', 'test')


def check_data(cfg: Config, out: Path, limit: int | None = None) -> list[DataReport]:
    """Inspect the data sets of a config, print the reports, and draw them.

    Writes ``shares.png``, and ``train.png`` and so on: labels over images.

    Args:
        cfg: The config.
        out: Folder to write to.
        limit: How many images and masks of each data set are read; None: all.

    Raises:
        FileNotFoundError: If a data folder is missing.
        ValueError: If the config has no model or no data sets of mmseg.
    """
    check_model(cfg)
    data_settings.check_data(cfg, *(f'{split}_dataloader' for split in SPLITS))
    init_default_scope(cfg.get('default_scope') or 'mmseg')
    writable_folder(out)
    model = MODELS.build(cfg.model)  # no weights are read
    reports: list[DataReport] = []
    train = None
    for split, dataset, readers in _data_sets(cfg, model):
        report = inspect(split, dataset, readers, limit, progress=True)
        if split == 'train':
            train = dataset
            report.notes += padded_crops(model, dataset)
        elif train is not None and not report.problems:
            report.notes += stretched_images(model, train, dataset)
        _note_common_images(report, reports)
        reports.append(report)
        print(report, flush=True)
        loaders = [label_loader(part.pipeline.transforms) for part in parts(dataset)]
        if report.samples and report.sizes:  # images of other kinds of files are not drawn
            draw_sheet(report, loaders[0], out / f'{split}.png')
    if not reports:
        raise ValueError(f'{cfg.filename} has no data sets of mmseg')
    if drawn := [report for report in reports if report.samples]:
        draw_shares(drawn, out / 'shares.png')
        print(f'pictures: {out}')
    return reports


def _data_sets(cfg: Config, model: Any) -> Iterator[tuple[str, Any, Sequence[LabelReader]]]:
    """Yield the splits with their data sets, and the heads and metrics that read their labels."""
    seen: list[Any] = []
    for split in SPLITS:
        settings = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
        if not settings or settings in seen:
            continue  # the test set is mostly the validation set
        seen.append(settings)
        dataset = DATASETS.build(settings)
        if split == 'train':
            yield split, dataset, training_readers(model)
            continue
        evaluator = Evaluator(cfg.get(f'{split}_evaluator') or [])
        evaluator.dataset_meta = dataset.metainfo
        yield split, dataset, evaluation_readers(model, SimpleNamespace(evaluator=evaluator))


def _note_common_images(report: DataReport, others: Sequence[DataReport]) -> None:
    for other in others:
        if common := sorted({*report.images} & {*other.images}):
            report.notes.append(f'{len(common)} images are also in {other.name}: {preview(common)}')
