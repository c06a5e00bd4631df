"""ONNX files in ONNX Runtime."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from mmseg_repvgg.deploy.runtimes.base import Runtime

PROVIDERS = dict(
    cpu=('CPUExecutionProvider',), cuda=('CUDAExecutionProvider', 'CPUExecutionProvider')
)
"""By device, in order of preference."""

CPU_INFO = Path('/proc/cpuinfo')


class OnnxRuntime(Runtime):
    """An ONNX file in ONNX Runtime."""

    def load(self, device: str = 'cpu', providers: Sequence[str] | None = None) -> None:
        """Load it.

        Args:
            device: ``'cpu'`` or ``'cuda'``.
            providers: ONNX Runtime's execution providers, in order of preference; by default those
                of ``device``.

        Raises:
            ValueError: If ``device`` is unknown, or the first provider is not available: ONNX
                Runtime would silently use the CPU.
        """
        if device not in PROVIDERS:
            raise ValueError(f'device={device!r} must be one of {", ".join(PROVIDERS)}')
        wanted = PROVIDERS[device] if providers is None else providers
        _check(wanted, onnxruntime.get_available_providers())
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads or 0
        if may_saturate():
            options.add_session_config_entry('session.x64quantprecision', '1')
        self.session = onnxruntime.InferenceSession(
            str(self.path), sess_options=options, providers=list(wanted)
        )
        _check(wanted, self.session.get_providers())  # its libraries may be missing
        self.input = self.session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        return np.asarray(self.session.run(None, {self.input: images})[0])


def may_saturate() -> bool:
    """Whether this CPU may add products of 8-bit numbers in 16 bits: x86 without VNNI, or unknown.

    ONNX Runtime's option against it halves the speed of int8 on CPUs that do not need it.
    """
    if platform.machine().lower() not in ('x86_64', 'amd64'):
        return False
    try:
        return 'vnni' not in CPU_INFO.read_text()  # avx512_vnni or avx_vnni
    except OSError:  # not Linux
        return True


def _check(wanted: Sequence[str], available: Sequence[str]) -> None:
    if not wanted or wanted[0] not in available:
        raise ValueError(
            f'providers={list(wanted)}: ONNX Runtime has {", ".join(available)} here; for CUDA pip '
            'install onnxruntime-gpu instead of onnxruntime'
        )
