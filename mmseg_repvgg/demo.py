"""The main job on built-in data: draw, train, fuse, evaluate both forms, show (make demo)."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mmseg_repvgg.analysis.time_in_turn import paired_ratio, time_in_turn
from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.benchmark.record import describe_code, describe_machine
from mmseg_repvgg.datasets.demo_scenes import DEMO_CLASSES
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.engine.launch import load_config
from mmseg_repvgg.shipped_files import config_path

CONFIG = 'demo_pspnet_repvgg_a0.py'
WORK_DIR = Path('work_dirs') / 'demo'
STRIP_IMAGES = 4


def run_demo(work_dir: Path, options: list[str] | None = None) -> dict[str, Any]:
    """Run all steps of the demo with the commands of this package, and print a summary.

    A finished demo is not run again; an interrupted training is resumed.

    Args:
        work_dir: Folder for all results.
        options: ``--cfg-options`` for all commands.

    Returns:
        The summary, which is written to ``work_dir/summary.json`` too.

    Raises:
        subprocess.CalledProcessError: If one of the commands fails.
    """
    work_dir = work_dir.resolve()
    summary_file = work_dir / 'summary.json'
    if not summary_file.is_file():
        summary = _do_all(work_dir, options or [])
        with atomic_file(summary_file) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + '\n')
    summary = json.loads(summary_file.read_text())
    print(format_summary(summary))
    return summary


def _do_all(work_dir: Path, options: list[str]) -> dict[str, Any]:
    config, scenes = config_path(CONFIG), work_dir / 'scenes'
    data = [
        f'{loader}_dataloader.dataset.data_root={scenes}' for loader in ('train', 'val', 'test')
    ]
    cfg_options = ['--cfg-options', *data, *options]

    def call(name: str, *args: object) -> float:
        command = [sys.executable, '-m', 'mmseg_repvgg', name, *map(str, args)]
        print('$', shlex.join(['python', *command[1:]]), flush=True)
        start = time.perf_counter()
        subprocess.run(command, check=True)
        return time.perf_counter() - start

    call('make-demo-scenes', scenes)
    train_dir, fused = work_dir / 'train', work_dir / 'fused.pth'
    seconds = call('train', config, '--work-dir', train_dir, '--resume', *cfg_options)
    trained = Path((train_dir / 'last_checkpoint').read_text().strip())
    call('fuse', config, trained, fused, *cfg_options)
    unfused = '--cfg-options', *data, *options, 'custom_hooks=[]'
    call('test', config, trained, '--work-dir', work_dir / 'unfused', *unfused)
    predictions = work_dir / 'predictions'
    deployed = fused.with_suffix('.py')
    call('test', deployed, fused, '--work-dir', work_dir / 'fused', '--out', predictions)
    strip = work_dir / 'strip.png'
    draw_strip(scenes, predictions, strip)
    forms = [
        load_segmentor(load_config(path), weights)[0]
        for path, weights in ((config, trained), (deployed, fused))
    ]
    return dict(
        training_seconds=round(seconds, 1),
        classes=list(DEMO_CLASSES),
        unfused=newest_metrics(work_dir / 'unfused'),
        fused=newest_metrics(work_dir / 'fused'),
        **time_forms(forms[0], forms[1]),
        checkpoint=str(trained),
        fused_checkpoint=str(fused),
        strip=str(strip),
        machine=describe_machine(),
        **describe_code(),
    )


def format_summary(summary: dict[str, Any]) -> str:
    """The summary as text."""
    rows = [
        f'{form:8} mIoU {summary[form]["mIoU"] / 100:.4f}   pixel accuracy '
        f'{summary[form]["aAcc"] / 100:.4f}   {summary[f"{form}_ms"]:.1f} ms an image'
        for form in ('unfused', 'fused')
    ]
    return '\n'.join(
        [
            '',
            f'PSPNet on RepVGG-A0, {len(summary["classes"])} classes of the demo scenes, '
            f'trained in {summary["training_seconds"] / 60:.1f} min',
            *rows,
            f'fused is {summary["speedup"]:.2f} times as fast ({summary["threads"]} threads)',
            f'fused checkpoint: {summary["fused_checkpoint"]} (config next to it)',
            f'image | truth | prediction: {summary["strip"]}',
        ]
    )


def newest_metrics(work_dir: Path) -> dict[str, float]:
    """The metrics that the last test in a work folder wrote.

    Raises:
        FileNotFoundError: If there are none.
    """
    found = sorted(work_dir.glob('*/*.json'))
    if not found:
        raise FileNotFoundError(f'{work_dir} holds no metrics; run mmseg-repvgg test first')
    return json.loads(found[-1].read_text())


def time_forms(unfused: nn.Module, fused: nn.Module) -> dict[str, float]:
    """Time both forms in turn on one random image of 512x256 pixels, in this process."""
    image = torch.randn(1, 3, 256, 512, generator=torch.Generator().manual_seed(0))

    def forward(model: nn.Module) -> Any:
        with torch.no_grad():
            return model(image, mode='tensor')

    seconds = time_in_turn(
        dict(unfused=lambda: forward(unfused), fused=lambda: forward(fused)), repeats=15
    )
    medians = {f'{name}_ms': 1e3 * float(np.median(times)) for name, times in seconds.items()}
    speedup = paired_ratio(seconds['unfused'], seconds['fused']).value
    return dict(medians, speedup=speedup, threads=torch.get_num_threads())


def draw_strip(scenes: Path, predictions: Path, out: Path, count: int = STRIP_IMAGES) -> None:
    """Draw rows of image | truth | prediction in Cityscapes' colours; ignored pixels are black.

    Args:
        scenes: The data root; its validation images are used.
        predictions: Label maps (train ids) that the command test wrote with ``--out``.
        out: The PNG to write.
        count: Number of rows.
    """
    from mmseg.datasets import CityscapesDataset

    palette = np.zeros((256, 3), np.uint8)
    palette[:19] = CityscapesDataset.METAINFO['palette']
    rows = []
    for image in sorted((scenes / 'leftImg8bit' / 'val').glob('*/*_leftImg8bit.png'))[:count]:
        stem = image.name.removesuffix('_leftImg8bit.png')
        truth = scenes / 'gtFine' / 'val' / image.parent.name / f'{stem}_gtFine_labelTrainIds.png'
        maps = [palette[np.array(Image.open(p))] for p in (truth, predictions / image.name)]
        rows.append(np.hstack([np.array(Image.open(image).convert('RGB')), *maps]))
    with atomic_file(out) as temporary:
        Image.fromarray(np.vstack(rows)).save(temporary)
