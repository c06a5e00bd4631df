"""Images beside their labels and what models predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from mmseg_repvgg.deploy.image_pipeline import build_test_set
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.plots.style import WIDTH, new_figure

OPACITY = 0.6
"""Of the colours over an image."""


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for some images of its test set."""

    name: str  # of the model's config
    classes: tuple[str, ...]
    colours: np.ndarray  # (classes, 3): RGB, 0 to 255
    images: list[np.ndarray]  # (H, W, 3) each, RGB
    truth: list[np.ndarray | None]  # (H, W) each; None without labels
    labels: list[np.ndarray]  # (H, W) each

    def over(self, index: int, labels: np.ndarray) -> np.ndarray:
        """Labels in their colours over an image; those that are no class stay without colour."""
        image = cv2.resize(self.images[index], labels.shape[::-1])
        known = labels < len(self.colours)
        mixed = (1 - OPACITY) * image[known] + OPACITY * self.colours[labels[known]]
        image[known] = mixed.round().astype(np.uint8)
        return image


def predict(cfg: Config, checkpoint: str, count: int) -> Predictions:
    """Let a model predict images that lie evenly in the test set of its config.

    Args:
        cfg: The config.
        checkpoint: The weights, in training form or fused.
        count: How many images at most.

    Raises:
        CheckpointError: If the weights do not fit the model.
        FileNotFoundError: If the images are not there.
        ValueError: If the model is not a segmentor, or ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f'the number of images must be at least 1, not {count}')
    model: Any = load_segmentor(cfg, checkpoint)[0]
    dataset = build_test_set(cfg)
    if not len(dataset):
        raise ValueError('the config has no test_dataloader with images')
    images, truth, labels = [], [], []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int):
        with torch.no_grad():
            (sample,) = model.test_step(pseudo_collate([dataset[index]]))
        path = dataset.get_data_info(index)['img_path']
        image = cv2.imread(path)
        if image is None:
            raise ValueError(f'{path} cannot be read as an image')
        images.append(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        labels.append(sample.pred_sem_seg.data[0].numpy())
        truth.append(sample.gt_sem_seg.data[0].numpy() if 'gt_sem_seg' in sample else None)
    meta = dataset.metainfo
    colours = np.array(meta['palette'], np.uint8)
    return Predictions(
        Path(cfg.filename or checkpoint).stem,
        tuple(meta['classes']),
        colours,
        images,
        truth,
        labels,
    )


def draw_predictions(models: Sequence[Predictions]) -> Figure:
    """Draw a row for each image: the image, its labels, and what each model predicts.

    Args:
        models: With the same images and classes.

    Raises:
        ValueError: If their images or classes differ.
    """
    first = models[0]
    for other in models[1:]:
        same = len(other.images) == len(first.images) and all(
            np.array_equal(*pair) for pair in zip(first.images, other.images, strict=True)
        )
        if not same or other.classes != first.classes:
            raise ValueError(
                f'{first.name} and {other.name} have other test images or classes: compare models '
                'of one data set'
            )
    rows, columns = len(first.images), 2 + len(models)
    height, width = first.images[0].shape[:2]
    figure = new_figure(0.6 + rows * (WIDTH / columns) * height / width)
    grid = figure.subplots(rows, columns, squeeze=False)
    for index, line in enumerate(grid):
        truth = first.truth[index]
        pictures = [first.images[index], None if truth is None else first.over(index, truth)]
        pictures += [model.over(index, model.labels[index]) for model in models]
        for axes, picture in zip(line, pictures, strict=True):
            axes.axis('off')
            if picture is not None:
                axes.imshow(picture)
    for axes, title in zip(grid[0], ['image', 'labels', *(m.name for m in models)], strict=True):
        axes.set_title(title, fontsize=9)
    patches = [
        Patch(color=colour / 255, label=name)
        for name, colour in zip(first.classes, first.colours, strict=True)
    ]
    figure.legend(handles=patches, loc='outside lower center', ncols=8, fontsize=8, frameon=False)
    return figure
