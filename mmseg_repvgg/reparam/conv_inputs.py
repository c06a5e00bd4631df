"""Record what the convs of a network read, while it runs on images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmseg_repvgg.reparam.equivalence import model_outputs, repeatable_outputs


class ConvInputs(TorchDispatchMode):
    """While it is active, records the range of every input channel of every conv.

    Convs are told apart by their weight, so that all convs are found, whatever calls them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lowest: dict[int, Tensor] = {}  # by id of the weight: (C_in,)
        self.highest: dict[int, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Run an operation, and note the range of what it reads if it is a conv."""
        if func.overloadpacket is torch.ops.aten.convolution:
            x, weight = args[:2]
            dims = [dim for dim in range(x.dim()) if dim != 1]
            for found, bounds, merge in (
                (x.amin(dims), self.lowest, torch.minimum),
                (x.amax(dims), self.highest, torch.maximum),
            ):
                known = bounds.get(id(weight), found)
                bounds[id(weight)] = merge(known, found)
        return func(*args, **(kwargs or {}))

    def record(self, model: nn.Module, images: Iterable[Tensor]) -> ConvInputs:
        """Run a model on images (N, C, H, W) in eval mode; ranges add up over calls."""

        def run(network: Any, batch: Tensor) -> list[Tensor]:
            with self:
                model_outputs(network, batch)
            return []

        for batch in images:
            repeatable_outputs(model, batch, run)
        return self

    def largest(self, weight: Tensor) -> Tensor | None:
        """The largest absolute value of every input channel: (C_in,); None if it did not run."""
        if id(weight) not in self.highest:
            return None
        return torch.maximum(self.highest[id(weight)], -self.lowest[id(weight)])
