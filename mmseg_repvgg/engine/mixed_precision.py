"""Mixed precision: float16 on a GPU, bfloat16 on a CPU."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from mmseg_repvgg.engine.config_types import type_name


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Forward and losses under bfloat16 autocast; weights, gradients and steps in float32.

    mmengine's ``AmpOptimWrapper`` cannot be built without a GPU. Its loss scale is not needed here:
    bfloat16 has the exponents of float32. So the optimizer's states are those of ``OptimWrapper``,
    and each can resume from checkpoints of the other.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Add autocast to the context that gradient accumulation needs."""
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def set_precision(cfg: Config, amp: bool) -> None:
    """Check that the optimizer wrapper can run here; with ``amp``, make it one of mixed precision.

    Raises:
        ValueError: If it cannot run on this machine, or cannot be combined with ``amp``.
    """
    wrapper: dict[str, Any] = cfg.get('optim_wrapper') or {}
    kind, is_cpu = type_name(wrapper, default='OptimWrapper'), get_device() == 'cpu'
    says = 'python -m mmseg_repvgg.doctor says what PyTorch sees'
    if not amp:
        if kind == 'AmpOptimWrapper' and is_cpu:
            raise ValueError(
                'the optim_wrapper of the config is AmpOptimWrapper, which needs a GPU; on the CPU '
                'add --amp, for bfloat16, or --cfg-options optim_wrapper.type=OptimWrapper, for '
                f'float32 ({says})'
            )
        return
    if kind not in ('OptimWrapper', 'AmpOptimWrapper', 'CpuAmpOptimWrapper'):
        raise ValueError(f'--amp cannot be combined with optim_wrapper {kind!r}')
    if not wrapper.get('optimizer'):
        raise ValueError(
            '--amp needs an optim_wrapper with one optimizer; for several, leave --amp out and set '
            'the type of each wrapper in the config: AmpOptimWrapper (GPU), CpuAmpOptimWrapper'
        )
    if not is_cpu:
        wrapper['type'] = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        return
    dtype = wrapper.get('dtype')
    if dtype not in (None, 'bfloat16'):
        raise ValueError(
            f'--amp on the CPU computes in bfloat16, optim_wrapper.dtype={dtype!r} needs a GPU; '
            f'leave dtype out ({says})'
        )
    warn_of_slow_half()
    for key in ('dtype', 'loss_scale', 'use_fsdp'):  # arguments of AmpOptimWrapper
        wrapper.pop(key, None)
    wrapper['type'] = 'CpuAmpOptimWrapper'


def has_fast_convs() -> bool:
    """Whether oneDNN convolves bfloat16 on this CPU; True if PyTorch does not say.

    Without AVX-512 (or AMX, or ARM's bf16) PyTorch does not use oneDNN but a plain loop, for
    dilated and ordinary convs (PyTorch issue 183815). Measured on PyTorch 2.14.1 limited to AVX2,
    one thread, 64 channels of 64 x 64: 700 ms in bfloat16, 6 ms in float32.
    """
    ask = getattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', None)
    return ask is None or not torch.backends.mkldnn.is_available() or bool(ask())


def warn_of_slow_half() -> None:
    """Warn if bfloat16 is slow here; call it before a run under autocast on a CPU."""
    if not has_fast_convs():
        warnings.warn(
            'this CPU has no instructions for bfloat16 convolutions: they run up to a hundred '
            'times slower than in float32. Leave mixed precision (--amp, fp16=True) out',
            stacklevel=3,
        )
