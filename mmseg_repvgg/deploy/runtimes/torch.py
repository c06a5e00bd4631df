"""Programs of ``torch.export`` in PyTorch."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of int8
from torch.export.passes import move_to_device_pass

from mmseg_repvgg.deploy.runtimes.base import Runtime
from mmseg_repvgg.deploy.torch_device import torch_device


class TorchRuntime(Runtime):
    """A .pt2 file in PyTorch."""

    def load(self, device: str = 'cpu') -> None:
        """Load it; PyTorch sets the number of threads for the whole process.

        Args:
            device: PyTorch's name of the device: ``'cpu'``, ``'cuda'``, ``'cuda:1'``, ``'mps'``.

        Raises:
            ValueError: If this machine has no such device.
        """
        self.device = torch_device(device)  # with its index: the program checks it
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        # unlike Module.to, it also moves constants of the graph
        program = move_to_device_pass(torch.export.load(self.path), self.device)
        self.module: Any = program.module()
        self._settings: Callable[[], Any] = nullcontext
        if self.info.precision == 'int8' and _has_compiler():
            self.module = torch.compile(self.module)
            # weights become constants, which the compiler then packs for its kernels
            self._settings = partial(torch._inductor.config.patch, freezing=True)

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        with torch.no_grad(), self._settings():
            return self.module(torch.from_numpy(images).to(self.device)).cpu().numpy()


def _has_compiler() -> bool:
    """Whether PyTorch's compiler can run int8 here; it does so at the first call for each shape.

    Without it the network computes in float32 on rounded values.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401
    except Exception as error:  # of the compiler's own type
        warnings.warn(
            'int8 in PyTorch needs a C++ compiler, such as g++, and torchao (pip install torchao). '
            f'Without them the network runs slower than in float32: {error}',
            stacklevel=2,
        )
        return False
    return True
