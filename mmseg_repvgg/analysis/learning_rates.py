"""Short trainings at several learning rates, with and without a warm-up: how stable they are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from mmengine.config import Config

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes
from mmseg_repvgg.engine import launch
from mmseg_repvgg.markdown import markdown_table
from mmseg_repvgg.plots.curves import running_mean
from mmseg_repvgg.plots.style import COLOURS, new_figure, plain_ticks, save
from mmseg_repvgg.reparam.equivalence import EquivalenceError
from mmseg_repvgg.shipped_files import config_path

CONFIG = 'demo_pspnet_repvgg_a0.py'
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4
"""Those of mmseg's schedules."""
START = 0.001
"""Share of the learning rate that a warm-up starts from."""
WINDOW = 10
"""Iterations that losses are averaged over, for the figure and the table."""


@dataclass(frozen=True)
class Curve:
    """A training, as saved in its JSON file; without losses it is still to be done."""

    learning_rate: float  # of all layers
    warm_up: int  # iterations, linear; 0: none
    iterations: int = 120
    crop: int = 129  # height and width in pixels
    batch: int = 4
    seed: int = 0  # of weights, crops and order
    losses: list[float | None] = field(default_factory=list)  # of every iteration; None: NaN
    gradients: list[float | None] = field(default_factory=list)  # norms before each step
    miou: float | None = None  # percent, of the fused form; None: it could not be evaluated
    accuracy: float | None = None  # of pixels, percent

    @property
    def name(self) -> str:
        """Name of its file, without the suffix."""
        return f'lr{self.learning_rate:g}_warmup{self.warm_up}_seed{self.seed}'

    @property
    def smooth(self) -> list[float]:
        """Losses averaged over the last :data:`WINDOW` iterations; NaN if one of them is."""
        return running_mean([math.nan if loss is None else loss for loss in self.losses], WINDOW)


def train_curve(curve: Curve, scenes: Path, work_dir: Path) -> Curve:
    """Train the demo's PSPNet on RepVGG-A0 from scratch with SGD, as mmseg's schedules do.

    After the warm-up the rate falls by poly 0.9, as there.

    Args:
        curve: The settings.
        scenes: Folder of demo scenes; they are drawn if missing.
        work_dir: For the log.
    """
    make_demo_scenes(scenes, num_train=120, num_val=20, size=(512, 256))
    with suppress(EquivalenceError):  # diverged: no scores, but losses
        launch.train(_config(curve, scenes), str(work_dir))
    (file,) = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    scores: dict[str, float] = next((row for row in rows if 'mIoU' in row), {})
    return replace(
        curve,
        losses=[_finite(row['loss']) for row in rows if 'loss' in row],
        gradients=[_finite(row['grad_norm']) for row in rows if 'loss' in row],
        miou=scores.get('mIoU'),
        accuracy=scores.get('aAcc'),
    )


def _config(curve: Curve, scenes: Path) -> Config:
    cfg = launch.load_config(config_path(CONFIG))
    size = (curve.crop, curve.crop)
    cfg.model.data_preprocessor.size = size
    for name in ('train', 'val', 'test'):
        loader = cfg[f'{name}_dataloader']
        loader.dataset.data_root = str(scenes)
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = curve.batch
    pipeline = cfg.train_dataloader.dataset.pipeline
    next(t for t in pipeline if t.type == 'RandomCrop').crop_size = size
    sgd = dict(type='SGD', lr=curve.learning_rate, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    clip = dict(max_norm=math.inf)  # clips nothing, and logs the norm
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=sgd, clip_grad=clip)
    end = curve.warm_up
    poly = dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=end)
    rise = dict(type='LinearLR', start_factor=START, by_epoch=False, begin=0, end=end)
    cfg.param_scheduler = [rise, poly] if curve.warm_up else [poly]
    cfg.train_cfg.update(max_iters=curve.iterations, val_interval=curve.iterations)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.update(interval=-1, save_last=False)
    cfg.log_processor.window_size = 1
    cfg.randomness = dict(seed=curve.seed)
    cfg.visualizer.name = curve.name  # a process keeps one per name
    return cfg


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def write_curve(curve: Curve, folder: Path) -> None:
    """Write ``folder/<name>.json``.

    Raises:
        OSError: If it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f'{curve.name}.json') as temporary:
        temporary.write_text(json.dumps(asdict(curve)) + '\n', encoding='utf-8')


def read_curves(folder: Path) -> list[Curve]:
    """All curves in a folder, by rate, warm-up and seed.

    Raises:
        ValueError: If there are none, or a file is not a curve.
    """
    curves = []
    for path in sorted(folder.glob('*.json')):
        try:
            curves.append(Curve(**json.loads(path.read_text(encoding='utf-8'))))
        except (json.JSONDecodeError, TypeError) as error:
            raise ValueError(
                f'{path} is not a curve of mmseg-repvgg learning-rates ({error!r})'
            ) from error
    if not curves:
        raise ValueError(f'{folder} holds no curves; train some with mmseg-repvgg learning-rates')
    return sorted(curves, key=lambda c: (c.learning_rate, c.warm_up, c.seed))


def table(curves: Iterable[Curve]) -> str:
    """A row per curve, in Markdown."""
    rows = []
    for curve in curves:
        last = curve.smooth[-1]
        early = [loss for loss in curve.losses[: len(curve.losses) // 3] if loss is not None]
        norms = [norm for norm in curve.gradients if norm is not None]
        rows.append(
            [
                f'{curve.learning_rate:g}',
                curve.warm_up or 'none',
                curve.seed,
                f'{max(early):.1f}' if early else None,
                f'{max(norms):.0f}' if norms else None,
                'not a number' if math.isnan(last) else f'{last:.2f}',
                None if curve.miou is None else f'{curve.miou:.1f}',
                None if curve.accuracy is None else f'{curve.accuracy:.1f}',
            ]
        )
    return markdown_table(
        ['learning rate', 'warm-up', 'seed', 'largest loss, first third', 'largest gradient norm',
         f'loss, last {WINDOW}', 'mIoU, %', 'pixel accuracy, %'], rows,
    )  # fmt: skip


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Draw the losses, a panel per learning rate, with and without warm-up; a line per seed.

    Raises:
        OSError: If it cannot be written.
    """
    rates = sorted({curve.learning_rate for curve in curves})
    rows = -(-len(rates) // 3)
    figure = new_figure(0.4 + 3 * rows)
    grid = figure.subplots(rows, 3, squeeze=False, sharey=True)
    for axes, rate in zip(grid.flat, rates, strict=False):
        shown: set[bool] = set()
        for curve in (c for c in curves if c.learning_rate == rate):
            warm = curve.warm_up > 0
            label = f'warm-up over {curve.warm_up}' if warm else 'no warm-up'
            (line,) = axes.plot(range(1, len(curve.losses) + 1), curve.smooth, linewidth=1.2)
            line.set(color=COLOURS[0 if warm else 3], label='' if warm in shown else label)
            shown.add(warm)
        axes.set(title=f'learning rate {rate:g}', xlabel='iteration', yscale='log')
        axes.grid(alpha=0.3, which='both')
        axes.legend(fontsize=9, loc='upper right')
    for axes in grid.flat[len(rates) :]:
        axes.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(f'training loss, mean of {WINDOW}')
        plain_ticks(axes.yaxis)
    save(figure, path)
