"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from mmseg_repvgg.deploy.exported import ExportedInfo
from mmseg_repvgg.deploy.runtimes.base import Runtime


class OnnxRuntime(Runtime):
    """An ONNX file in ONNX Runtime.

    Args:
        path: The ONNX file.
        info: What was written beside it.
        threads: As :class:`Runtime`.
        providers: ONNX Runtime's execution providers, the preferred first.
    """

    def __init__(
        self,
        path: Path,
        info: ExportedInfo,
        threads: int | None = None,
        providers: tuple[str, ...] = ('CPUExecutionProvider',),
    ) -> None:
        super().__init__(path, info, threads)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=list(providers)
        )
        self.input = self.session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        return np.asarray(self.session.run(None, {self.input: images})[0])
