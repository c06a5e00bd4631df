"""Compare exported models with PyTorch on many images (tools/compare_exported.py)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean, median
from typing import Any

from mmengine.config import Config

from mmseg_repvgg.deploy.image_pipeline import image_paths, read_pixels, read_test_pipeline
from mmseg_repvgg.deploy.images import resize_as_tested
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.runtimes import load_runtime, readers
from mmseg_repvgg.deploy.verify_export import Match, compare_output, run_reference, to_batch


@dataclass(frozen=True)
class Agreement:
    """How an exported model compares with PyTorch over several images."""

    model: Path
    runtime: str
    options: Mapping[str, Any]  # of the runtime
    matches: tuple[Match, ...]  # one per image
    seconds: float  # per call, the median

    @property
    def mean(self) -> float:
        """Share of the pixels of all images that have PyTorch's class."""
        return fmean(match.agreement for match in self.matches)

    def __str__(self) -> str:
        options = ''.join(f', {name}={value}' for name, value in self.options.items())
        worst = min(self.matches, key=lambda match: match.agreement)
        gaps = [match.relative for match in self.matches if match.relative is not None]
        logits = f', logits differ by {max(gaps):.2g} at most' if gaps else ''
        return (
            f'{self.model.name} in {self.runtime}{options}: argmax agreement {100 * self.mean:.4f} '
            f'% over {len(self.matches)} images, {100 * worst.agreement:.4f} % on the worst '
            f'({worst.image}){logits}; {1000 * self.seconds:.0f} ms an image'
        )


def compare_exported(
    cfg: Config,
    checkpoint: str | Path,
    models: Sequence[str | Path],
    runtime: str | None = None,
    threads: int | None = None,
    count: int | None = None,
    **options: Any,
) -> list[Agreement]:
    """Run each test image of a config through all exported models in turn.

    Images are read as in the test pipeline and resized to the size of the models; for models for
    all sizes as in the pipeline. PyTorch runs the network of the checkpoint without further
    rewrites.

    Args:
        cfg: The config of the checkpoint.
        checkpoint: The checkpoint that the models were exported from.
        models: Files of tools/export.py, all of one size or for all sizes.
        runtime: As in :func:`load_runtime`, for all models.
        threads: As in :func:`load_runtime`.
        count: How many images; None: all.
        **options: Options of the runtime's class.

    Raises:
        FileNotFoundError: If the data or a model are not there.
        ValueError: If the models differ in size, or as :func:`load_runtime`.
        CheckpointError: If the checkpoint does not fit the config.
    """
    infos = [ModelDescription.read(path) for path in models]
    sizes = {info.size for info in infos if not info.dynamic_size}
    if len(sizes) > 1:
        raise ValueError(f'models have sizes {[info.size for info in infos]}: give one size')
    size = next(iter(sizes), None)
    if count is not None and count < 1:
        raise ValueError(f'images={count} must be at least 1')
    reference, _ = load_segmentor(cfg, checkpoint)
    preparation = read_test_pipeline(cfg, infos[0].left_out)
    networks = [load_runtime(path, runtime, threads, **options) for path in models]
    columns: list[list[tuple[Match, float]]] = [[] for _ in models]
    for index, file in enumerate(islice(image_paths(cfg), count)):
        image = read_pixels(file, preparation, infos[0].channels)
        if size is None:
            image = resize_as_tested(image, preparation.resize, preparation.keep_ratio)
        pixels = to_batch(image, size or (image.shape[0], image.shape[1]))
        expected, normalised = run_reference(reference, pixels, preparation.normalize)
        for network, info, column in zip(networks, infos, columns, strict=True):
            start = time.perf_counter()
            output = network(pixels if info.preprocessing_inside else normalised)
            seconds = time.perf_counter() - start
            match = compare_output('', f'image {index}', expected, output, info)
            column.append((match, seconds))
    if not columns[0]:
        raise FileNotFoundError(
            'no images found in data_root of test_dataloader.dataset; set it with --cfg-options '
            'test_dataloader.dataset.data_root=PATH'
        )
    names = [runtime or readers(info.format)[0] for info in infos]
    return [
        Agreement(
            Path(path), name, options, tuple(m for m, _ in column), median(s for _, s in column)
        )
        for path, name, column in zip(models, names, columns, strict=True)
    ]
