"""Programs of ``torch.export`` in PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.export.passes import move_to_device_pass

from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.runtimes.base import Runtime


class TorchRuntime(Runtime):
    """A .pt2 file in PyTorch.

    Args:
        path: The .pt2 file.
        info: Its description.
        threads: As :class:`Runtime`; PyTorch sets it for the whole process.
        device: Where to run it.
    """

    def __init__(
        self,
        path: Path,
        info: ModelDescription,
        threads: int | None = None,
        device: str = 'cpu',
    ) -> None:
        super().__init__(path, info, threads, device=device)
        if threads is not None:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        # unlike Module.to, it also moves constants of the graph
        program = move_to_device_pass(torch.export.load(path), self.device)
        self.module = program.module()

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        with torch.no_grad():
            return self.module(torch.from_numpy(images).to(self.device)).cpu().numpy()
