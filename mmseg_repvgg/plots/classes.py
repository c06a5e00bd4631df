"""The confusion matrix of a model, and the IoU of each class that follows from it."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS

from mmseg_repvgg.atomic_files import atomic_file, make_folder
from mmseg_repvgg.engine import launch
from mmseg_repvgg.plots.style import bar_height, grouped_bars, legend_above, new_figure


@dataclass(frozen=True)
class Confusion:
    """How many pixels of each class were predicted as which class."""

    name: str  # of the model
    classes: tuple[str, ...]
    pixels: np.ndarray  # (classes, classes): row: ground truth, column: prediction

    @property
    def shares(self) -> np.ndarray:
        """Percent of the pixels of each row; NaN for a class that is in no image."""
        with np.errstate(invalid='ignore'):
            return 100 * self.pixels / self.pixels.sum(1, keepdims=True)

    @property
    def iou(self) -> np.ndarray:
        """IoU of each class, in percent; NaN for a class that is in no image and no prediction."""
        right = self.pixels.diagonal()
        with np.errstate(invalid='ignore'):
            return 100 * right / (self.pixels.sum(0) + self.pixels.sum(1) - right)

    def write(self, path: Path) -> None:
        """Write it as JSON.

        Raises:
            OSError: If it cannot be written.
        """
        values = dict(name=self.name, classes=self.classes, pixels=self.pixels.tolist())
        make_folder(path.parent)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(values) + '\n', encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> Confusion:
        """Read what :meth:`write` wrote.

        Raises:
            ValueError: If there is no such file, or it holds something else.
        """
        try:
            values = json.loads(path.read_text(encoding='utf-8'))
            name, classes = values['name'], tuple(values['classes'])
            pixels = np.array(values['pixels'], np.int64).reshape(len(classes), len(classes))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f'{path} is not a confusion matrix, which mmseg-repvgg plot confusion writes next '
                f'to its picture ({error!r})'
            ) from error
        return cls(name, classes, pixels)


@METRICS.register_module()
class ConfusionMatrix(BaseMetric):
    """Counts which classes are predicted for the pixels of each class, and writes a file.

    Args:
        out: The file, see :meth:`Confusion.write`.
        name: Of the model.
        ignore_index: Label of the pixels that do not count.
    """

    def __init__(self, out: str, name: str, ignore_index: int) -> None:
        super().__init__()
        self.out, self.name, self.ignore_index = Path(out), name, ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch."""
        count = len(self.dataset_meta['classes'])
        for sample in data_samples:
            predicted, labels = (
                sample[key]['data'].cpu().numpy().astype(np.int64).squeeze()
                for key in ('pred_sem_seg', 'gt_sem_seg')
            )
            counted = labels != self.ignore_index
            pairs = count * labels[counted] + predicted[counted]
            self.results.append(np.bincount(pairs, minlength=count**2).reshape(count, count))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Write the sum over all images; no score is returned."""
        classes = tuple(self.dataset_meta['classes'])
        Confusion(self.name, classes, np.sum(results, axis=0)).write(self.out)
        return {}


def measure_confusion(cfg: Config, checkpoint: str, out: Path) -> Confusion:
    """Evaluate a checkpoint on the config's test set, as ``mmseg-repvgg test`` does.

    Args:
        cfg: The config, which stays as it is.
        checkpoint: The weights, in training form or fused.
        out: The JSON file to write.

    Raises:
        ValueError: If ``out`` is a file of another kind, or as :func:`.launch.test`.
        FileNotFoundError: If a data folder is missing.
    """
    if out.exists():
        Confusion.read(out)  # nothing else may be replaced
    cfg = copy.deepcopy(cfg)
    given = cfg.get('test_evaluator') or []
    metrics = list(given) if isinstance(given, (list, tuple)) else [given]
    ignored = next((m['ignore_index'] for m in metrics if 'ignore_index' in m), 255)
    own = dict(type='ConfusionMatrix', out=str(out), name=out.stem, ignore_index=ignored)
    cfg.test_evaluator = [*metrics, own]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work_dir:
        # a process keeps one visualizer per name, with its folder
        cfg.visualizer = dict(cfg.get('visualizer') or dict(type='Visualizer'), name=work_dir)
        launch.test(cfg, checkpoint, work_dir)
    return Confusion.read(out)


def draw_confusion(confusion: Confusion) -> Figure:
    """Draw the matrix, each row in percent of its ground truth."""
    count = len(confusion.classes)
    figure = new_figure(9)
    axes = figure.subplots()
    shares = confusion.shares
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=100)
    for row, column in np.argwhere(shares >= 0.5) if count <= 30 else ():
        share = shares[row, column]
        colour = 'white' if share > 55 else 'black'
        axes.text(column, row, f'{share:.0f}', ha='center', va='center', color=colour, fontsize=8)
    size = min(9.0, 400 / count)
    axes.set_xticks(range(count), confusion.classes, rotation=90, fontsize=size)
    axes.set_yticks(range(count), confusion.classes, fontsize=size)
    axes.set(xlabel='prediction', ylabel='ground truth')
    axes.set_title(f'{confusion.name}: predictions for the pixels of each class')
    figure.colorbar(image, label='% of the ground truth of the row', shrink=0.8)
    return figure


def draw_classes(confusions: Sequence[Confusion], sort: bool = False) -> Figure:
    """Draw the IoU of each class as bars, for one or several models.

    Args:
        confusions: Of the models.
        sort: Best class of the first model first, instead of the order of the data set.

    Raises:
        ValueError: If the models have different classes.
    """
    first = confusions[0]
    for other in confusions:
        if other.classes != first.classes:
            raise ValueError(
                f'{first.name} and {other.name} have different classes, {first.classes} and '
                f'{other.classes}: draw them apart'
            )
    order = np.argsort(-first.iou) if sort else np.arange(len(first.classes))
    names = [first.classes[i] for i in order]
    series: dict[str, list[float | None]] = {}
    for confusion in confusions:
        values = [None if np.isnan(iou) else float(iou) for iou in confusion.iou[order]]
        label = f'{confusion.name}, mIoU {np.nanmean(confusion.iou):.2f}'
        series[f'{label} ({len(series) + 1})' if label in series else label] = values
    figure = new_figure(bar_height(names, series))
    axes = figure.subplots()
    grouped_bars(axes, names, series, '{:.1f}', 'in no image')
    axes.set_xlabel('IoU, %')
    legend_above(axes, columns=2)
    return figure
