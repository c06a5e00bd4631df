"""NNPACK's Winograd convolution with kernels that are transformed once, not in every call.

PyTorch brings NNPACK and calls it as ``torch._nnpack_spatial_convolution``, which transforms the
kernels anew each time: a sixth of the time of a layer of RepVGG-B2 at 713x713. The library itself
takes transformed kernels, and PyTorch's shared library exports it, so that it is called here by its
C interface (``nnp_convolution_inference`` in ``nnpack.h``, the same since 2017). Where that is not
there, or does not give what PyTorch's conv gives, :func:`is_available` says so.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from ctypes import POINTER, Structure, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WINOGRAD_8X8 = 3  # nnp_convolution_algorithm: F(6x6, 3x3)
TILE = 6  # pixels a side that a tile of it gives
PRECOMPUTE, REUSE = 2, 3  # nnp_convolution_transform_strategy
ACTIVATIONS = {False: 0, True: 1}  # nnp_activation: identity, ReLU
ROUNDING = 1e-4  # relative, of the check on a small conv


class NnpackError(RuntimeError):
    """NNPACK refused a convolution; the text has its status."""


class TransformedKernel:
    """A kernel as NNPACK's Winograd multiplies with it.

    Args:
        weight: (C_out, C_in, 3, 3) float32 on the CPU; it is not kept.

    Raises:
        NnpackError: If NNPACK refuses it.
    """

    def __init__(self, weight: Tensor) -> None:
        self.channels = (weight.shape[1], weight.shape[0])
        weight = weight.detach().contiguous()
        # the kernel is the same for every size of the map, but NNPACK wants one
        self.values = _run(PRECOMPUTE, self.channels, (8, 8), weight)

    def convolve(self, x: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
        """A 3x3 conv of stride 1 and padding 1.

        Args:
            x: (1, C_in, H, W) float32 on the CPU.
            bias: (C_out,), float32, or None.
            relu: Whether a ReLU follows.

        Returns:
            (1, C_out, H, W).

        Raises:
            NnpackError: If NNPACK refuses it.
        """
        height, width = x.shape[2:]
        bias = x.new_zeros(self.channels[1]) if bias is None else bias.detach().contiguous()
        out = x.new_empty(1, self.channels[1], height, width)
        _run(REUSE, self.channels, (height, width), self.values, x.contiguous(), bias, out, relu)
        return out


def transformed_bytes(weight: Tensor) -> int:
    """Bytes that a transformed kernel takes: 64 values for each 3x3."""
    return weight.shape[0] * weight.shape[1] * 64 * 4


@functools.cache
def is_available() -> bool:
    """Whether transformed kernels can be used here; the first call tries a small conv."""
    if not torch.backends.nnpack.is_available() or _library() is None:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 14, 17, generator=generator)
    weight = torch.randn(5, 3, 3, 3, generator=generator)
    bias = torch.randn(5, generator=generator)
    try:
        actual = TransformedKernel(weight).convolve(x, bias)
    except NnpackError:
        return False
    expected = F.conv2d(x, weight, bias, padding=1)
    return bool((actual - expected).abs().max() <= ROUNDING * expected.abs().max())


_kept = threading.local()


class _Size(Structure):
    """``struct nnp_size``."""

    _fields_ = [('width', c_size_t), ('height', c_size_t)]


class _Padding(Structure):
    """``struct nnp_padding``."""

    _fields_ = [(side, c_size_t) for side in ('top', 'right', 'bottom', 'left')]


_ARGUMENTS = (
    c_int, c_int, c_size_t, c_size_t,  # algorithm, strategy, input and output channels
    _Size, _Padding, _Size, _Size,  # input, padding, kernel, stride
    c_void_p, c_void_p, c_void_p, c_void_p,  # input, kernel, bias, output
    c_void_p, POINTER(c_size_t),  # workspace and its bytes
    c_int, c_void_p, c_void_p, c_void_p,  # activation, its parameters, threads, profile
)  # fmt: skip


@functools.cache
def _library() -> Any:
    """PyTorch's library with NNPACK in it, or None."""
    path = Path(torch.__file__).parent / 'lib' / 'libtorch_cpu.so'
    try:
        library = ctypes.CDLL(str(path))
        library.nnp_convolution_inference.argtypes = _ARGUMENTS
        library.nnp_convolution_inference.restype = c_int
        library.pthreadpool_create.argtypes = (c_size_t,)
        library.pthreadpool_create.restype = c_void_p
    except (OSError, AttributeError):  # no such file; no such function in it
        return None
    return library


@functools.cache
def _threads(count: int, process: int) -> c_void_p:
    """A pool of threads, one per process: those of the parent do not outlive a fork."""
    return c_void_p(_library().pthreadpool_create(count))


def _run(
    strategy: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: Tensor,
    x: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Call NNPACK; returns its workspace: with ``PRECOMPUTE`` that is the transformed kernel.

    With ``REUSE`` it holds a layer's transformed maps, and is kept for the next call of the thread:
    the system takes longer to hand out so many fresh pages than NNPACK takes to fill them.
    """
    pointers = [None if t is None else t.data_ptr() for t in (x, kernel, bias, out)]

    def call(workspace: Any, length: c_size_t) -> None:
        status = _library().nnp_convolution_inference(
            WINOGRAD_8X8, strategy, *channels,
            _Size(size[1], size[0]), _Padding(1, 1, 1, 1), _Size(3, 3), _Size(1, 1),
            *pointers,
            workspace, ctypes.byref(length),
            ACTIVATIONS[relu], None, _threads(torch.get_num_threads(), os.getpid()), None,
        )  # fmt: skip
        if status:
            raise NnpackError(f'NNPACK refused a convolution of {channels} channels: {status}')

    length = c_size_t(0)
    call(None, length)  # says how many bytes it needs
    workspace = getattr(_kept, 'workspace', None) if strategy == REUSE else None
    if workspace is None or workspace.numel() < length.value:
        workspace = torch.empty(length.value, dtype=torch.uint8)  # aligned to 64 bytes by PyTorch
        if strategy == REUSE:
            _kept.workspace = workspace
    call(workspace.data_ptr(), length)
    return workspace
