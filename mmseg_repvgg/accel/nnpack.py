"""NNPACK's Winograd convolution through its C interface, with kernels transformed once.

PyTorch ships NNPACK and calls it as ``torch._nnpack_spatial_convolution``, which transforms the
kernels in every call: a sixth of the time of a layer of RepVGG-B2 at 713x713. PyTorch's shared
library exports the C function (``nnp_convolution_inference`` in ``nnpack.h``, unchanged since
2017), which also takes transformed kernels.

The functions here pass addresses to C: the caller must check device, dtype and shapes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_int, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

WINOGRAD_8X8 = 3  # nnp_convolution_algorithm: F(6x6, 3x3)
VALUES_PER_KERNEL = 8 * 8  # of a transformed 3x3 kernel
PRECOMPUTE, REUSE = 2, 3  # nnp_convolution_transform_strategy
IDENTITY, RELU = 0, 1  # nnp_activation
ROUNDING = 1e-4  # relative tolerance in the check on a small conv


class NnpackError(RuntimeError):
    """NNPACK refused a convolution; the message has the status code."""


@functools.cache
def is_available() -> bool:
    """Whether NNPACK is available and correct; the first call starts it and tests a small conv."""
    library = _library()
    if library is None or library.nnp_initialize():
        return False
    cpu = dict(device='cpu', dtype=torch.float32)  # whatever the defaults are
    generator = torch.Generator('cpu').manual_seed(0)
    x = torch.randn(1, 3, 14, 17, generator=generator, **cpu)  # type: ignore[call-overload]
    weight = torch.randn(5, 3, 3, 3, generator=generator, **cpu)  # type: ignore[call-overload]
    try:
        actual = convolve(x, [transform_kernel(weight)], None)
    except NnpackError:
        return False
    expected = F.conv2d(x, weight, padding=1)
    return bool((actual - expected).abs().max() <= ROUNDING * expected.abs().max())


def transform_kernel(weight: Tensor) -> Tensor:
    """Transform the kernel of a conv of one group.

    Args:
        weight: (C_out, C_in, 3, 3), contiguous.

    Returns:
        (C_out * C_in * 256,) bytes, in NNPACK's own order.

    Raises:
        NnpackError: If NNPACK refuses it.
    """
    # the result is the same for every size of the map, but NNPACK asks for one
    return _call(PRECOMPUTE, (weight.shape[1], weight.shape[0]), (8, 8), weight)


def convolve(
    x: Tensor, kernels: Sequence[Tensor], bias: Tensor | None, relu: bool = False
) -> Tensor:
    """A 3x3 conv of stride 1 and padding 1.

    Args:
        x: (N, C_in, H, W), contiguous, not empty.
        kernels: The transformed kernel of each group.
        bias: (C_out,), contiguous, or None.
        relu: Whether a ReLU follows.

    Returns:
        (N, C_out, H, W).

    Raises:
        NnpackError: If NNPACK refuses it.
    """
    batch, in_channels, height, width = x.shape
    groups = len(kernels)
    channels = in_channels // groups
    out_channels = kernels[0].numel() // (channels * VALUES_PER_KERNEL * 4)
    out = x.new_empty(batch * groups, out_channels, height, width)
    if bias is None:
        bias = x.new_zeros(groups * out_channels)
    biases = bias.view(groups, out_channels)
    # one image and group per call: NNPACK's code for batches is slower than PyTorch's convs
    for position, maps in enumerate(x.view(batch * groups, channels, height, width)):
        group = position % groups
        tensors = maps, biases[group], out[position]
        _call(REUSE, (channels, out_channels), (height, width), kernels[group], *tensors, relu=relu)
    return out.view(batch, groups * out_channels, height, width)


def are_equal_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors of one shape hold the same bits, NaNs included.

    Several times as fast as ``torch.equal``.
    """
    return _library().memcmp(a.data_ptr(), b.data_ptr(), a.nbytes) == 0


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
    folder = Path(torch.__file__).parent / 'lib'
    for name in ('libtorch_cpu.so', 'libtorch_cpu.dylib'):
        try:
            library = ctypes.CDLL(str(folder / name))
            library.nnp_initialize.restype = c_int
            library.nnp_convolution_inference.argtypes = _ARGUMENTS
            library.nnp_convolution_inference.restype = c_int
            library.pthreadpool_create.argtypes = (c_size_t,)
            library.pthreadpool_create.restype = c_void_p
            library.memcmp.argtypes = (c_void_p, c_void_p, c_size_t)
        except (OSError, AttributeError):  # no such file; no such function in it
            continue
        return library
    return None


@functools.cache
def _threads(count: int, process: int) -> c_void_p:
    """A pool of threads, one per process: the parent's threads do not survive a fork."""
    return c_void_p(_library().pthreadpool_create(count))


_thread_data = threading.local()


def _call(
    strategy: int,
    channels: tuple[int, int],
    size: tuple[int, int],
    kernel: Tensor,
    x: Tensor | None = None,
    bias: Tensor | None = None,
    out: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Call NNPACK and return its workspace; with ``PRECOMPUTE`` that is the transformed kernel.

    With ``REUSE`` it holds a layer's transformed maps, and is kept for the next call of the thread:
    allocating so many new pages takes longer than filling them.
    """
    pointers = [None if t is None else t.data_ptr() for t in (x, kernel, bias, out)]

    def call(workspace: Any, length: c_size_t) -> None:
        status = _library().nnp_convolution_inference(
            WINOGRAD_8X8, strategy, *channels,
            _Size(size[1], size[0]), _Padding(1, 1, 1, 1), _Size(3, 3), _Size(1, 1),
            *pointers,
            workspace, ctypes.byref(length),
            RELU if relu else IDENTITY, None,
            _threads(torch.get_num_threads(), os.getpid()), None,
        )  # fmt: skip
        if status:
            raise NnpackError(f'NNPACK refused a convolution of {channels} channels: {status}')

    length = c_size_t(0)
    call(None, length)  # says how many bytes it needs
    workspace = getattr(_thread_data, 'workspace', None) if strategy == REUSE else None
    if workspace is None or workspace.numel() < length.value:
        # aligned to 64 bytes by PyTorch
        workspace = torch.empty(length.value, dtype=torch.uint8, device='cpu')
        if strategy == REUSE:
            _thread_data.workspace = workspace
    call(workspace.data_ptr(), length)
    return workspace
