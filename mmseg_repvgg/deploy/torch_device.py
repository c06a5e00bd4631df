"""Devices of PyTorch by name."""

from __future__ import annotations

import torch


def torch_device(name: str) -> torch.device:
    """A device of PyTorch, with its index: ``'cuda'`` -> ``cuda:0``.

    Raises:
        ValueError: If PyTorch has no such device on this machine; lists those that it has.
    """
    try:
        return torch.empty(0, device=name).device
    except Exception as error:  # each kind of device raises its own type
        there = ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]
        there += ['mps'] if torch.backends.mps.is_available() else []
        raise ValueError(
            f'device={name!r}: PyTorch {torch.__version__} has {", ".join(there)} on this machine'
        ) from error
