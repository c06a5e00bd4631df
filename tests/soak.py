"""Soak of the Segmenter: thousands of images of changing sizes through one exported model.

``python -m tests.soak`` exports a tiny network for every installed runtime and runs each in a
process of its own, which imports neither PyTorch nor an mm package. It fails if the resident memory
grows by more than 2 % after the warm-up, if file handles are left open, or if the same image ever
gives another label map.

Memory is compared by the mean over the first and over the last quarter of the images after the
warm-up, in which every size occurs: single values swing with the size of the image.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

PROJECT = Path(__file__).parents[1]
SIZE = (65, 129)
"""Of the network, in pixels; the images are smaller, as large, and larger."""

NUM_SIZES = 25
GROWTH = 0.02
SUFFIXES = {'onnxruntime': '.onnx', 'openvino': '.xml', 'mnn': '.mnn'}


@dataclass(frozen=True)
class Soak:
    """What a soak found."""

    images: int
    warmup: int
    first_mib: float  # mean resident memory over the first quarter after the warm-up
    last_mib: float  # and over the last
    handles_before: int
    handles_after: int
    distinct: int  # images
    changed: int  # label maps that differ from the first one of their image
    seconds: float

    @property
    def growth(self) -> float:
        """Of the resident memory, relative."""
        return self.last_mib / self.first_mib - 1

    def faults(self) -> list[str]:
        """What should not be, in words."""
        found = []
        if self.growth > GROWTH:
            found.append(f'memory grew by {100 * self.growth:.1f} %, from {self.first_mib:.1f} MiB')
        if self.handles_after > self.handles_before:
            found.append(f'{self.handles_after - self.handles_before} file handles are left open')
        if self.changed:
            found.append(f'{self.changed} label maps differ from the first of their image')
        return found

    def __str__(self) -> str:
        return (
            f'{self.images} images of {self.distinct} kinds in {self.seconds:.0f} s, memory '
            f'{self.first_mib:.1f} -> {self.last_mib:.1f} MiB ({100 * self.growth:+.2f} %), '
            f'file handles {self.handles_before} -> {self.handles_after}, '
            f'{self.changed} label maps changed'
        )


def resident_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path('/proc/self/statm').read_text().split()[1])
    return pages * os.sysconf('SC_PAGE_SIZE') / 2**20


def open_handles() -> int:
    """Open file handles of this process, that of the listing included."""
    return len(os.listdir('/proc/self/fd'))


def make_images(folder: Path, count: int = NUM_SIZES) -> list[Path]:
    """Image files of different sizes, coarse patches of colour, every third one grey or alpha."""
    import cv2

    random, files = np.random.default_rng(0), []
    for i in range(count):
        height, width = (int(n) for n in random.integers(17, 200, 2))
        patches = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
        image = patches.repeat(8, 0).repeat(8, 1)[:height, :width]
        if i % 6 == 0:
            image = image[:, :, 0]
        elif i % 6 == 3:
            image = np.dstack([image, image[:, :, :1]])
        files.append(folder / f'{i}.png')
        files[-1].write_bytes(cv2.imencode('.png', image)[1].tobytes())
    return files


def soak(segmenter, files: Sequence[Path], images: int, warmup: int) -> Soak:
    """Run ``images`` images, the files in a random order, after ``warmup`` of them."""
    random, first = np.random.default_rng(1), {}
    memory, changed, began = [], 0, time.monotonic()
    for i in range(warmup + images):
        if i == warmup:
            gc.collect()
            handles, began = open_handles(), time.monotonic()
        which = i % len(files) if i < len(files) else int(random.integers(len(files)))
        digest = hashlib.sha256(segmenter(files[which]).tobytes()).digest()
        changed += first.setdefault(which, digest) != digest
        if i >= warmup:
            memory.append(resident_mib())
    quarter = max(images // 4, 1)
    return Soak(
        images=images,
        warmup=warmup,
        first_mib=float(np.mean(memory[:quarter])),
        last_mib=float(np.mean(memory[-quarter:])),
        handles_before=handles,
        handles_after=open_handles(),
        distinct=len(first),
        changed=changed,
        seconds=time.monotonic() - began,
    )


def export_tiny(folder: Path, suffix: str) -> Path:
    """An exported PSPNet of few channels, which runs on overlapping windows, with weights of 0..1.

    It is that of the tests: see ``tests/common.py``.
    """
    import torch
    from mmengine.registry import MODELS, init_default_scope

    import mmseg_repvgg.models  # noqa: F401
    from mmseg_repvgg.deploy.export import Options, export
    from tests.common import randomise_batchnorms, runner_cfg

    init_default_scope('mmseg')
    cfg = runner_cfg(folder / 'no data', folder / 'work')
    mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
    cfg.model.data_preprocessor.update(mean=mean, std=std, bgr_to_rgb=True)
    cfg.model.test_cfg = dict(mode='slide', crop_size=SIZE, stride=(43, 86))
    torch.manual_seed(0)
    model = randomise_batchnorms(MODELS.build(cfg.model))
    model.decode_head.conv_seg.weight.data.normal_()  # classes that differ
    torch.save(dict(state_dict=model.state_dict()), folder / 'tiny.pth')
    out = folder / f'tiny{suffix}'
    return export(cfg, folder / 'tiny.pth', out, options=Options(preprocessing=True)).path


def in_a_process(model: Path, runtime: str, images: int, warmup: int) -> Soak:
    """Soak a model in a new process; returns what it found."""
    done = subprocess.run(
        [sys.executable, '-m', 'tests.soak', '--model', str(model), '--runtime', runtime,
         '--images', str(images), '--warmup', str(warmup)],
        cwd=PROJECT,
        env={**os.environ, 'PYTHONPATH': str(PROJECT)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )  # fmt: skip
    return Soak(**json.loads(done.stdout.splitlines()[-1]))


def main(argv: list[str] | None = None) -> int:
    """Print what each runtime gives; 1 if something is at fault."""
    parser = argparse.ArgumentParser(prog='python -m tests.soak', description=__doc__)
    parser.add_argument('--images', type=int, default=2000)
    parser.add_argument('--warmup', type=int, default=200)
    parser.add_argument('--runtime', choices=SUFFIXES, help='by default all that are installed')
    parser.add_argument('--model', type=Path, help='soak this file here, and print JSON')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        if args.model:
            from mmseg_repvgg.deploy.segmenter import Segmenter

            segmenter = Segmenter(args.model, args.runtime, threads=1, pad_small_images=True)
            found = soak(segmenter, make_images(Path(name)), args.images, args.warmup)
            heavy = {'torch', 'mmengine', 'mmcv', 'mmseg'} & set(sys.modules)
            assert not heavy, heavy
            print(json.dumps(asdict(found)))
            return 0
        from mmseg_repvgg.deploy.runtimes import is_installed

        chosen = [args.runtime] if args.runtime else [r for r in SUFFIXES if is_installed(r)]
        faults = []
        for runtime in chosen:
            model = export_tiny(Path(name), SUFFIXES[runtime])
            result = in_a_process(model, runtime, args.images, args.warmup)
            print(f'{runtime}: {result}', flush=True)
            faults += [f'{runtime}: {fault}' for fault in result.faults()]
    print('\n'.join(faults) or 'nothing is at fault')
    return int(bool(faults))


if __name__ == '__main__':
    sys.exit(main())
