"""MNN files in MNN. Its Winograd convolutions suit plain 3x3 networks."""

from __future__ import annotations

import threading
from typing import Any

import MNN
import MNN.expr
import MNN.nn
import numpy as np

from mmseg_repvgg.deploy.runtimes.base import Runtime, num_cores

WINOGRAD_MEMORY_LEVEL = 3
"""The number of this hint in MNN (``Interpreter::HintMode``)."""


class MnnRuntime(Runtime):
    """An MNN file in MNN, on the CPU in fp32; by default a thread per CPU."""

    def load(self, device: str = 'cpu', winograd_level: int = 3) -> None:
        """Load it.

        Args:
            device: Only ``'cpu'``.
            winograd_level: Size of Winograd's tiles, 0 to 3. 0 is no Winograd; 1 is small tiles, as
                exact as a direct convolution; 3 (MNN's default) is large tiles, faster but less
                exact.

        Raises:
            ValueError: If ``device`` or ``winograd_level`` has another value.
        """
        if device != 'cpu':
            raise ValueError(f"device={device!r}: MNN is run on 'cpu' only")
        if winograd_level not in (0, 1, 2, 3):
            raise ValueError(f'winograd_level={winograd_level!r} must be one of (0, 1, 2, 3)')
        settings = dict(backend='CPU', precision='high', numThread=self.threads or num_cores())
        manager: Any = MNN.nn.create_runtime_manager((settings,))
        manager.set_hint(WINOGRAD_MEMORY_LEVEL, winograd_level)
        output = 'labels' if self.info.argmax_inside else 'logits'
        self.module = MNN.nn.load_module_from_file(
            str(self.path), ['images'], [output], runtime_manager=manager
        )
        self.manager = manager  # MNN does not keep a reference
        self.lock = threading.Lock()  # a module has one set of buffers

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`; threads take turns, because MNN keeps Python's lock meanwhile."""
        with self.lock:
            var = MNN.expr.const(images, list(images.shape), MNN.expr.NCHW)
            outputs = self.module.forward([var])
            if not outputs:
                raise RuntimeError(f'MNN could not run {self.path}; see what it printed')
            (output,) = outputs
            if not self.info.argmax_inside:
                output = MNN.expr.convert(output, MNN.expr.NCHW)
            return np.array(output.read())  # a copy: the next call reuses the buffer
