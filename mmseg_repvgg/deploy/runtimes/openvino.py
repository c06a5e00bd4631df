"""OpenVINO and ONNX files in OpenVINO."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import openvino

from mmseg_repvgg.deploy.runtimes.base import Runtime, num_cores

COMBINED = ('AUTO', 'BATCH', 'HETERO', 'MULTI')
"""OpenVINO's names for a choice of devices, such as ``'auto:gpu,cpu'``."""


class OpenVinoRuntime(Runtime):
    """A model in OpenVINO: an .xml file, with its .bin next to it, or an ONNX file."""

    def load(self, device: str = 'cpu', precision: str = 'f32') -> None:
        """Load it.

        Args:
            device: OpenVINO's name of the device, upper or lower case: ``'cpu'``, ``'gpu'``.
            precision: Precision of the computation. OpenVINO's default is bf16 on CPUs that support
                it, which changes the logits.

        Raises:
            ValueError: If OpenVINO has no such device.
        """
        core, name = openvino.Core(), device.upper()
        there = core.available_devices
        kind = name.partition(':')[0].partition('.')[0]
        if kind not in (*COMBINED, *(found.partition('.')[0] for found in there)):
            raise ValueError(
                f'device={device!r}: OpenVINO has {", ".join(there).lower()} on this machine'
            )
        settings: dict[str, Any] = dict(
            INFERENCE_PRECISION_HINT=precision, PERFORMANCE_HINT='LATENCY'
        )
        if self.threads is not None:
            settings['INFERENCE_NUM_THREADS'] = self.threads
            if kind == 'CPU':
                streams = max(1, num_cores() // self.threads)  # calls that run at the same time
                settings['NUM_STREAMS'] = streams
                settings['INFERENCE_NUM_THREADS'] *= streams  # it is of all streams together
        self.model = core.compile_model(str(self.path), name, settings)
        self.requests = threading.local()  # one per thread: a request has one set of buffers

    def run(self, images: np.ndarray) -> np.ndarray:
        """As :meth:`Runtime.run`."""
        if not hasattr(self.requests, 'own'):
            self.requests.own = self.model.create_infer_request()
        # a copy: the next call reuses the buffer
        return np.array(self.requests.own.infer([images])[0])
