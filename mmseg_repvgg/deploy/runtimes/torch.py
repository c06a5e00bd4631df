"""Programs of ``torch.export`` in PyTorch."""

from __future__ import annotations

import numpy as np
import torch
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
        self.module = program.module()

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        with torch.no_grad():
            return self.module(torch.from_numpy(images).to(self.device)).cpu().numpy()
