"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.runtimes.base import Runtime

PROVIDERS = dict(
    cpu=('CPUExecutionProvider',), cuda=('CUDAExecutionProvider', 'CPUExecutionProvider')
)
"""By device, in order of preference."""


class OnnxRuntime(Runtime):
    """An ONNX file in ONNX Runtime.

    Args:
        path: The ONNX file.
        info: Its description.
        threads: As :class:`Runtime`.
        device: ``'cpu'`` or ``'cuda'``.
        providers: ONNX Runtime's execution providers, in order of preference; by default those of
            ``device``.

    Raises:
        ValueError: If ``device`` is unknown, or the first provider is not available: ONNX Runtime
            would silently use the CPU.
    """

    def __init__(
        self,
        path: Path,
        info: ModelDescription,
        threads: int | None = None,
        device: str = 'cpu',
        providers: Sequence[str] | None = None,
    ) -> None:
        if device not in PROVIDERS:
            raise ValueError(f'device={device!r} must be one of {", ".join(PROVIDERS)}')
        providers = PROVIDERS[device] if providers is None else providers
        super().__init__(path, info, threads, providers=tuple(providers))
        self._check(providers, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        self.session = onnxruntime.InferenceSession(
            str(path), sess_options=options, providers=list(providers)
        )
        self._check(providers, self.session.get_providers())  # its libraries may be missing
        self.input = self.session.get_inputs()[0].name

    @staticmethod
    def _check(wanted: Sequence[str], there: Sequence[str]) -> None:
        if not wanted or wanted[0] not in there:
            raise ValueError(
                f'providers={list(wanted)}: ONNX Runtime has {", ".join(there)} here; for CUDA pip '
                'install onnxruntime-gpu instead of onnxruntime'
            )

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        return np.asarray(self.session.run(None, {self.input: images})[0])
