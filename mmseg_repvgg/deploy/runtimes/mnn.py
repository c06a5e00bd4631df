"""MNN files in MNN. Its Winograd convolutions suit plain 3x3 networks."""

from __future__ import annotations

from queue import LifoQueue
from typing import Any

import MNN
import numpy as np

from mmseg_repvgg.deploy.runtimes.base import Runtime, num_cores

WINOGRAD_MEMORY_LEVEL = 3
"""The number of this hint in MNN (``Interpreter::HintMode``)."""
LAYOUT = MNN.Tensor_DimensionType_Caffe
"""(N, C, H, W)."""
DTYPES = {MNN.Halide_Type_Float: np.float32, MNN.Halide_Type_Int: np.int32}


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
        threads = self.threads or num_cores()
        self.settings = dict(backend='CPU', precision='high', numThread=threads)
        self.winograd_level = winograd_level
        self.sessions: LifoQueue[Session | None] = LifoQueue()
        for _ in range(num_cores() // threads - 1):
            self.sessions.put(None)  # made when that many calls run at the same time
        self.sessions.put(self._new_session())

    def _new_session(self) -> Session:
        output = 'labels' if self.info.argmax_inside else 'logits'
        return Session(str(self.path), output, self.settings, self.winograd_level)

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`.

        Calls of several threads run at the same time, on a copy of the network each, as long as
        there are CPUs for their threads; then they wait.

        Raises:
            RuntimeError: If MNN fails.
        """
        session = self.sessions.get()
        try:
            session = session or self._new_session()
            return session.run(images)
        finally:
            self.sessions.put(session)


class Session:
    """A network in MNN with buffers of its own.

    By MNN's ``Interpreter`` instead of ``nn.Module``, whose ``forward`` keeps Python's lock.
    Sessions of one interpreter wait for each other, so each has its own.
    """

    def __init__(self, path: str, output: str, settings: dict[str, Any], winograd: int) -> None:
        self.path = path
        self.network = MNN.Interpreter(path)
        self.network.setSessionHint(WINOGRAD_MEMORY_LEVEL, winograd)
        self.session = self.network.createSession(settings)
        self.input = self.network.getSessionInput(self.session, 'images')
        self.output = self.network.getSessionOutput(self.session, output)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Run it on images (N, C, H, W)."""
        if tuple(self.input.getShape()) != images.shape:
            self.network.resizeTensor(self.input, images.shape)
            self.network.resizeSession(self.session)
        self.input.copyFrom(MNN.Tensor(images.shape, MNN.Halide_Type_Float, images, LAYOUT))
        if self.network.runSession(self.session) != 0:
            raise RuntimeError(f'MNN could not run {self.path}; see what it printed')
        shape, kind = self.output.getShape(), self.output.getDataType()
        outputs = MNN.Tensor(shape, kind, np.empty(shape, DTYPES[kind]), LAYOUT)
        self.output.copyToHostTensor(outputs)
        return np.array(outputs.getNumpyData())
