"""Ways to run a network, by name (in PyTorch or in a runtime), and its forward pass to be timed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmseg_repvgg.benchmark.candidate import Built
from mmseg_repvgg.deploy.model_description import FORMATS, ModelDescription
from mmseg_repvgg.deploy.runtimes import RUNTIMES, is_installed, load_runtime
from mmseg_repvgg.deploy.write_formats import WRITERS
from mmseg_repvgg.version import __version__

PYTORCH = 'pytorch'
CUDA_PROVIDER = 'CUDAExecutionProvider'


@dataclass(frozen=True)
class Execution:
    """A way to run a network."""

    runtime: str = PYTORCH  # or one of RUNTIMES, for which it is exported
    dtype: torch.dtype = torch.float32  # of PyTorch
    tf32: bool = False
    channels_last: bool = False  # whether PyTorch holds feature maps as (N, H, W, C)
    options: dict[str, Any] = field(default_factory=dict)  # arguments of the runtime's class
    needs_gpu: bool = False

    @property
    def is_possible(self) -> bool:
        """Whether this machine has what it needs."""
        if self.runtime == PYTORCH:
            return not self.needs_gpu or torch.cuda.is_available()
        if not is_installed(self.runtime):
            return False
        return not self.needs_gpu or CUDA_PROVIDER in _providers()


EXECUTIONS: dict[str, Execution] = {
    PYTORCH: Execution(),  # on the GPU if there is one, in fp32 without TF32
    'pytorch-tf32': Execution(tf32=True, needs_gpu=True),
    'pytorch-channels_last': Execution(channels_last=True, needs_gpu=True),
    'pytorch-fp16': Execution(dtype=torch.float16, needs_gpu=True),
    'pytorch-fp16-channels_last': Execution(
        dtype=torch.float16, channels_last=True, needs_gpu=True
    ),
    'onnxruntime': Execution('onnxruntime'),
    'onnxruntime-cuda': Execution(
        'onnxruntime', options=dict(providers=[CUDA_PROVIDER]), needs_gpu=True
    ),
    'openvino': Execution('openvino'),
    'mnn': Execution('mnn'),
}


def is_pytorch(name: str) -> bool:
    """Whether the network runs in PyTorch itself."""
    return EXECUTIONS[name].runtime == PYTORCH


def _providers() -> list[str]:
    import onnxruntime

    return onnxruntime.get_available_providers()


def forward_pass(network: nn.Module, images: Tensor, runtime: str = PYTORCH) -> Built:
    """Prepare the forward pass of a network.

    Args:
        network: Returns logits (N, classes, ...).
        images: (N, C, H, W) float32.
        runtime: Key of :data:`EXECUTIONS`.

    Raises:
        ValueError: On an unknown runtime.
    """
    if runtime not in EXECUTIONS:
        raise ValueError(f'runtime={runtime!r} must be one of {", ".join(EXECUTIONS)}')
    network.eval().requires_grad_(False)
    prepare = _in_pytorch if is_pytorch(runtime) else _in_runtime
    built = prepare(network, images, EXECUTIONS[runtime])
    built.info['parameters'] = sum(p.numel() for p in network.parameters())
    return built


def _in_pytorch(network: nn.Module, images: Tensor, execution: Execution) -> Built:
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
    return Built(call, output, memory=torch.cuda.max_memory_allocated if cuda else None)


def _in_runtime(network: nn.Module, images: Tensor, execution: Execution) -> Built:
    array, runtime = images.numpy(), execution.runtime
    with tempfile.TemporaryDirectory(prefix='benchmark-') as folder:
        path = _export(network, images, Path(folder), RUNTIMES[runtime].formats[0])
        loaded = load_runtime(path, runtime, torch.get_num_threads(), **execution.options)
        info = dict(file_bytes=path.stat().st_size)
        loaded.run(array)  # some runtimes read the file only now
    last: list[np.ndarray] = []

    def call() -> None:
        last.clear()
        last.append(loaded.run(array))

    def output() -> np.ndarray:
        return last[0].argmax(1).astype(np.int16)

    return Built(call, output, info)


def _export(network: nn.Module, images: Tensor, folder: Path, model_format: str) -> Path:
    """Write a network that maps ``images`` to logits in one of :data:`FORMATS`."""
    path = folder / f'network{FORMATS[model_format]}'
    with torch.no_grad():
        logits = network(images)  # builds constants for this size outside the graph
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
        classes=tuple(map(str, range(logits.shape[1]))),
        palette=(),
        stride=None,
        rewrites=(),
        source_sha256='',
        version=__version__,
    ).write(path)
    return path
