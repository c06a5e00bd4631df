"""Draws what is in a data set: a bar chart of the classes, and overlays of labels on images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmseg_repvgg.datasets.data_report import DataReport
from mmseg_repvgg.deploy.images import as_picture, read_image
from mmseg_repvgg.plots.style import bar_height, grouped_bars, legend_above, new_figure, save

COLUMNS, ROWS = 4, 3
"""Of a sheet of overlays."""
TILE = 400
"""Largest side of an image in a sheet, in pixels."""
OPACITY = 0.5
IGNORED, UNKNOWN = (0, 0, 0), (255, 0, 255)
"""RGB of labels that are no class."""


def draw_shares(reports: Sequence[DataReport], path: Path) -> None:
    """Draw the share of every class in every data set as a bar chart (PNG)."""
    ids = sorted({label for report in reports for label in report.shares()})
    names = [f'{i} {reports[0].label_name(i)}' for i in ids]
    series: dict[str, list[float | None]] = {
        report.name: [100 * report.shares().get(label, 0.0) for label in ids] for report in reports
    }
    figure = new_figure(bar_height(names, series))
    axes = figure.subplots()
    grouped_bars(axes, names, series, '{:.2f} %')
    axes.set_xlabel('pixels in %')
    legend_above(axes)
    save(figure, path)


def draw_sheet(report: DataReport, loader: Any, path: Path) -> None:
    """Draw labels over images spread over a data set (PNG).

    Ignored labels are black, ids that are no class magenta.

    Args:
        report: Of the data set.
        loader: Loads the label map of a sample.
        path: The file.
    """
    colours = np.full((256, 3), UNKNOWN, np.uint8)
    colours[: len(report.palette)] = np.array(report.palette, np.uint8).reshape(-1, 3)
    colours[[i for i in report.ignored if 0 <= i < 256]] = IGNORED
    count = min(len(report.samples), COLUMNS * ROWS)
    rows = -(-count // COLUMNS)
    figure = Figure(figsize=(4 * COLUMNS, 3.2 * rows + 1), layout='constrained')
    for axes in figure.subplots(rows, COLUMNS, squeeze=False).flat:
        axes.axis('off')
    for axes, i in zip(figure.axes[:count], range(count), strict=True):
        sample = report.samples[i * len(report.samples) // count]
        axes.imshow(overlay(sample, loader, colours))
        axes.set_title(Path(sample['img_path']).name, fontsize=8)
    found = sorted(report.shares())
    handles = [Patch(color=colours[i] / 255, label=f'{i} {report.label_name(i)}') for i in found]
    figure.legend(handles=handles, loc='outside lower center', ncols=8, fontsize=8)
    save(figure, path)


def overlay(sample: dict[str, Any], loader: Any, colours: np.ndarray) -> np.ndarray:
    """(h, w, 3) RGB: an image and its labels in colours (256, 3), at most TILE large."""
    image = as_picture(read_image(sample['img_path']))[:, :, ::-1]
    labels = loader.transform(dict(sample, seg_fields=[]))['gt_seg_map']
    factor = min(1.0, TILE / max(image.shape[:2]))
    size = max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    labels = cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)
    return cv2.addWeighted(small, 1 - OPACITY, colours[labels], OPACITY, 0)
