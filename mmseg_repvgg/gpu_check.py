"""Checks in about ten minutes whether everything works on a GPU (tools/gpu_check.py).

Every section is a function ``(check) -> figures`` that adds what is wrong to ``check.problems``. A
section that raises is a problem itself; the others go on.
"""

from __future__ import annotations

import copy
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.analysis.time_in_turn import paired_ratio, time_in_turn
from mmseg_repvgg.benchmark.networks import Logits, calibrated_segmentor, scene
from mmseg_repvgg.benchmark.training import KINDS, backbone
from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes
from mmseg_repvgg.reparam.equivalence import compare, difference, model_outputs, tolerance_of
from mmseg_repvgg.reparam.rewrites import deployed_copy
from mmseg_repvgg.shipped_files import config_path
from mmseg_repvgg.version import __version__

SMALL, LARGE = 'demo_pspnet_repvgg_a0.py', 'pspnet_repvgg_b2.py'
FUSED = ('branches', 'batchnorm')
REWRITTEN = (*FUSED, 'dilation', 'pyramid')
HALF = {'fp16': torch.float16, 'bf16': torch.bfloat16}


@dataclass
class Check:
    """How to check, and what was found to be wrong."""

    device: str = 'cuda'
    quick: bool = False  # small networks: a test of the check itself
    problems: list[str] = field(default_factory=list)

    @property
    def config(self) -> str:
        """The network of most sections, in ``configs/``."""
        return SMALL if self.quick else LARGE

    def wait(self) -> None:
        """Wait until the GPU has done its work."""
        if self.device == 'cuda':
            torch.cuda.synchronize()


def run(check: Check, sections: Sequence[str] | None = None) -> dict[str, Any]:
    """Run some sections, by default all; returns figures by section, and ``problems``.

    Raises:
        ValueError: If a section is unknown, or there is no GPU.
    """
    unknown = sorted(set(sections or ()) - set(SECTIONS))
    if unknown:
        raise ValueError(f'sections={unknown} are unknown; choose from {", ".join(SECTIONS)}')
    if check.device == 'cuda' and not torch.cuda.is_available():
        raise ValueError(
            'PyTorch sees no GPU (python -m mmseg_repvgg.doctor says why); give --device cpu '
            '--quick to test the check itself'
        )
    result: dict[str, Any] = {}
    for name in sections or SECTIONS:
        print(time.strftime('%X'), name, file=sys.stderr)
        try:
            result[name] = SECTIONS[name](check)
        except Exception as error:
            traceback.print_exc()
            check.problems.append(f'{name}: {type(error).__name__}: {error}')
    return dict(result, problems=check.problems)


def environment(check: Check) -> dict[str, Any]:
    """Versions, the GPU, and PyTorch's settings."""
    cuda = check.device == 'cuda'
    return dict(
        mmseg_repvgg=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        gpu=str(torch.cuda.get_device_properties(0)) if cuda else None,
        cudnn_allow_tf32=torch.backends.cudnn.allow_tf32,
        matmul_allow_tf32=torch.backends.cuda.matmul.allow_tf32,
    )


def equivalence(check: Check) -> dict[str, Any]:
    """Fused and rewritten compared with the original, in every precision.

    The comparison of the deploy hook must accept them with PyTorch's default settings, TF32 on.
    """
    size = (65, 97) if check.quick else (257, 385)
    rows: dict[str, Any] = {}
    for config in dict.fromkeys((SMALL, check.config)):
        original = calibrated_segmentor(config, size)
        images = scene(*size)
        on_cpu = _outputs(original, images)
        for dtype in (torch.float32, *HALF.values()):
            place: Any = dict(device=check.device, dtype=dtype)
            before, inputs = copy.deepcopy(original).to(**place), images.to(**place)
            for form, names in (('fused', FUSED), ('rewritten', REWRITTEN)):
                after, _ = deployed_copy(before, names)
                found, limit = compare(before, after, inputs), tolerance_of(before)
                name = f'{config}, {form}, {dtype}'.replace('torch.', '')
                rows[name] = dict(difference=str(found), tolerance=limit)
                if not found.max_rel <= limit:
                    check.problems.append(f'equivalence of {name}: {found}, allowed {limit:.2g}')
                outputs = [t.float().cpu() for t in _outputs(after, inputs)]
                rows[name]['compared with float32 on the CPU'] = str(difference(on_cpu, outputs))
    return rows


def training(check: Check) -> dict[str, Any]:
    """The tools on a few demo scenes: with the hook, AMP, a process of torchrun, compiled."""
    iterations = 4 if check.quick else 40
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_demo_scenes(folder / 'scenes', 8, 2)
        loaders = [f'{split}_dataloader' for split in ('train', 'val', 'test')]
        data = [f'{loader}.dataset.data_root={folder / "scenes"}' for loader in loaders]
        data += [f'{loader}.num_workers=0' for loader in loaders]
        data += [f'{loader}.persistent_workers=False' for loader in loaders]
        length = [f'train_cfg.{key}={iterations}' for key in ('max_iters', 'val_interval')]
        length += [f'default_hooks.checkpoint.interval={iterations}']

        def tool(title: str, *words: Any, options: Sequence[str] = (), launch: Any = ()) -> None:
            command = [sys.executable, *launch, '-m', 'mmseg_repvgg', *map(str, words)]
            command += ['--cfg-options', *options]
            hidden = {} if check.device == 'cuda' else {'CUDA_VISIBLE_DEVICES': ''}
            start = time.perf_counter()
            done = subprocess.run(
                command, cwd=folder, env={**os.environ, **hidden}, capture_output=True, text=True
            )
            lines = (done.stdout + done.stderr).strip().splitlines()
            rows[title] = dict(
                seconds=round(time.perf_counter() - start, 1),
                hook=next((line for line in lines if 'deployed form:' in line), None),
                miou=next((line.strip() for line in lines[::-1] if 'mIoU:' in line), None),
            )
            if done.returncode:
                why = next((line for line in lines[::-1] if 'rror' in line), ' | '.join(lines[-3:]))
                check.problems.append(f'{title}: exit code {done.returncode}: {why}')

        config = config_path(SMALL)
        train = ('train', config, '--work-dir')
        options = [*data, *length]
        tool('training', *train, 'default', options=options)
        tool('training with AMP', *train, 'amp', '--amp', options=options)
        torchrun = ('-m', 'torch.distributed.run', '--nproc_per_node', '1')
        words = (*train, 'ddp', '--launcher', 'pytorch')
        tool('training by torchrun', *words, options=options, launch=torchrun)
        if check.device == 'cuda':
            tool('training compiled', *train, 'compiled', options=[*options, 'compile=True'])
        trained = f'default/iter_{iterations}.pth'
        tool('fusing', 'fuse', config, trained, 'fused.pth', options=data)
        tool('testing the fused model', 'test', 'fused.py', 'fused.pth', options=data[2::3])
    return rows


def memory(check: Check) -> dict[str, Any]:
    """Bytes that a backbone keeps for the backward pass, and the time of a training step."""
    settings: dict[str, Any] = dict(arch='A0', size=64, batch=2)
    if not check.quick:
        settings = dict(arch='B1g2', size=320, batch=8)
    built = {kind: backbone(kind, **settings) for kind in KINDS}
    seconds = time_in_turn(
        {kind: b.call for kind, b in built.items()}, repeats=1 if check.quick else 15, warm_up=3
    )
    base = next(iter(KINDS))
    return {
        kind: {
            'kept MiB': round(built[kind].info['kept_bytes'] / 2**20, 2),
            'ms a step': _milliseconds(times),
            f'time, {base} = 1': str(paired_ratio(times, seconds[base])),
        }
        for kind, times in seconds.items()
    }


def speed(check: Check) -> dict[str, Any]:
    """Milliseconds an image as trained, fused and rewritten, in every precision and layout."""
    size = (65, 65) if check.quick else (713, 713)
    original = calibrated_segmentor(check.config, size)
    forms = {'as trained': original, 'fused': deployed_copy(original, FUSED)[0]}
    forms['rewritten'], _ = deployed_copy(original, REWRITTEN)
    rows: dict[str, Any] = {}
    for precision in ('float32', 'tf32', *HALF):
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = (
            precision == 'tf32'
        )
        for layout in (torch.contiguous_format, torch.channels_last):
            place: Any = dict(
                device=check.device,
                dtype=HALF.get(precision, torch.float32),
                memory_format=layout,
            )
            images = scene(*size).to(**place)
            calls = {
                name: partial(
                    _forward, check, Logits(copy.deepcopy(model)).eval().to(**place), images
                )
                for name, model in forms.items()
            }
            with torch.inference_mode():
                seconds = time_in_turn(calls, repeats=1 if check.quick else 15, warm_up=3)
            for name, times in seconds.items():
                rows[f'{name}, {precision}, {layout}'.replace('torch.', '')] = {
                    'ms an image': _milliseconds(times),
                    'speed, as trained = 1': str(paired_ratio(seconds['as trained'], times)),
                }
    return rows


def _outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs without gradients, as PyTorch computes them by default."""
    with torch.no_grad():
        return model_outputs(model, images)


def _forward(check: Check, network: nn.Module, images: Tensor) -> None:
    network(images)
    check.wait()


def _milliseconds(seconds: Sequence[float]) -> float:
    return round(1e3 * sorted(seconds)[len(seconds) // 2], 3)


SECTIONS: dict[str, Callable[[Check], dict[str, Any]]] = {
    'environment': environment,
    'training': training,
    'equivalence': equivalence,
    'memory': memory,
    'speed': speed,
}
"""In the order in which they are run; the ones that could stop a user's work come first."""
