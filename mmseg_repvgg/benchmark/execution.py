"""Ways to run a network, by name: in PyTorch or in a runtime, on the CPU or a GPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

from mmseg_repvgg.deploy.runtimes import is_installed

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
    if not find_spec('onnxruntime'):
        return []
    import onnxruntime

    return onnxruntime.get_available_providers()
