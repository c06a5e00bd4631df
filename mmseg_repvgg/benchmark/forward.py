"""A network's forward pass to be timed, in PyTorch or exported to a runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmseg_repvgg.benchmark.candidate import Built
from mmseg_repvgg.benchmark.execution import EXECUTIONS, PYTORCH, Execution, is_pytorch
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes import RUNTIMES, load_runtime
from mmseg_repvgg.deploy.write_formats import WRITERS
from mmseg_repvgg.version import __version__


def forward_pass(network: nn.Module, images: Tensor, runtime: str = PYTORCH) -> Built:
    """Prepare the forward pass of a network.

    Args:
        network: Returns logits (N, classes, ...).
        images: (N, C, H, W) float32.
        runtime: Key of :data:`mmseg_repvgg.benchmark.execution.EXECUTIONS`.

    Raises:
        ValueError: On an unknown runtime.
    """
    if runtime not in EXECUTIONS:
        raise ValueError(f'runtime={runtime!r} must be one of {", ".join(EXECUTIONS)}')
    network.eval().requires_grad_(False)
    info: dict[str, Any] = dict(parameters=sum(p.numel() for p in network.parameters()))
    run = _in_pytorch if is_pytorch(runtime) else _in_runtime
    return run(network, images, EXECUTIONS[runtime], info)


def _in_pytorch(
    network: nn.Module, images: Tensor, execution: Execution, info: dict[str, Any]
) -> Built:
    cuda = torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = execution.tf32
    torch.backends.cudnn.allow_tf32 = execution.tf32
    place: Any = dict(
        memory_format=torch.channels_last if execution.channels_last else torch.contiguous_format,
        dtype=execution.dtype,
        device='cuda' if cuda else 'cpu',
    )
    network, images = network.to(**place), images.to(**place)
    last: list[Tensor] = []

    def call() -> None:
        last.clear()
        with torch.inference_mode():
            last.append(network(images))
        if cuda:
            torch.cuda.synchronize()

    def output() -> np.ndarray:
        return last[0].argmax(1).to(torch.int16).cpu().numpy()

    if cuda:
        torch.cuda.reset_peak_memory_stats()
    return Built(call, output, info, torch.cuda.max_memory_allocated if cuda else None)


def _in_runtime(
    network: nn.Module, images: Tensor, execution: Execution, info: dict[str, Any]
) -> Built:
    array, runtime = images.numpy(), execution.runtime
    with tempfile.TemporaryDirectory(prefix='benchmark-') as folder:
        path = export_network(network, images, Path(folder), RUNTIMES[runtime].formats[0])
        loaded = load_runtime(path, runtime, torch.get_num_threads(), **execution.options)
        info['file_bytes'] = path.stat().st_size
        loaded.run(array)  # some runtimes read the file only now
    last: list[np.ndarray] = []

    def call() -> None:
        last.clear()
        last.append(loaded.run(array))

    def output() -> np.ndarray:
        return last[0].argmax(1).astype(np.int16)

    return Built(call, output, info)


def export_network(network: nn.Module, images: Tensor, folder: Path, model_format: str) -> Path:
    """Write a network that maps ``images`` to logits in one of :data:`FORMATS`."""
    path = folder / f'network{FORMATS[model_format]}'
    with torch.no_grad():
        network(images)  # builds constants for this size outside the graph
        program = torch.export.export(network, (images,))
    WRITERS[model_format](program, path, 'logits')
    ModelDescription(
        format=model_format,
        size=(images.shape[2], images.shape[3]),
        dynamic_batch=False,
        preprocessing_inside=False,
        argmax_inside=False,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        to_rgb=True,
        classes=(),
        palette=(),
        stride=None,
        rewrites=(),
        source_sha256='',
        version=__version__,
    ).write(path)
    return path


def calibrate(network: nn.Module, images: Tensor, run: Callable[[Tensor], object]) -> None:
    """Set BatchNorm statistics from ``images``, so that random weights give sane activations.

    Args:
        network: In any mode; left in eval mode.
        images: (N, C, H, W), N at least 2.
        run: A forward pass.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
    network.train()
    with torch.no_grad():
        run(images)
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def scene(height: int, width: int, batch: int = 1) -> Tensor:
    """Demo scenes, normalised: (batch, 3, height, width) float32 of mean 0 and deviation 1."""
    import cv2

    from mmseg_repvgg.datasets.demo_scenes import compose_scene

    images = []
    for seed in range(batch):
        image, _ = compose_scene(np.random.default_rng(seed), 512, 256)
        images.append(cv2.resize(image, (width, height)).astype(np.float32))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    deviation, mean = torch.std_mean(pixels, dim=(0, 2, 3), keepdim=True)
    return ((pixels - mean) / deviation).contiguous()
