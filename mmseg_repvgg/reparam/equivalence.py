"""Run two models on the same input, compare what they give, and refuse what is not equal."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Largest relative difference of outputs that rounding explains, by the dtype of the weights
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}

POINTS = 32
"""So many points a side are compared of heads that work on points."""


class EquivalenceError(RuntimeError):
    """A rewritten model does not give what the original gives."""


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two models are apart."""

    max_abs: float  # largest absolute difference
    max_rel: float  # largest absolute difference over the largest absolute value before
    argmax_agreement: float  # share of the first output's positions with the same best class

    def __str__(self) -> str:
        return (
            f'largest difference {self.max_abs:.3g} (relative {self.max_rel:.3g}), '
            f'argmax agreement {100 * self.argmax_agreement:.4f} %'
        )

    def merge(self, other: Difference) -> Difference:
        """The worse of two."""
        return Difference(
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
            min(self.argmax_agreement, other.argmax_agreement),
        )


def tolerance_of(model: nn.Module) -> float:
    """The tolerance for the dtype of the model's parameters."""
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return TOLERANCES.get(dtype, TOLERANCES[torch.float32])


def random_images(
    model: nn.Module, size: tuple[int, int] = (129, 193), batch: int = 1, seed: int = 0
) -> Tensor:
    """Standard normal images (batch, 3, *size) of the model's device and dtype.

    They come from a generator of their own: the global random state is untouched.
    """
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, _input_channels(model), *size, generator=generator)
    return images.to(device=like.device, dtype=like.dtype)


def model_outputs(model: Any, images: Tensor) -> list[Tensor]:
    """All raw outputs of a model for preprocessed images (N, C, H, W).

    Of a segmentor: the logits of the decode head (of a cascade: of all of its heads, the last one
    first) and of every auxiliary head; of another mmengine model: what its tensor mode gives; of a
    plain module: what it returns.
    """
    if hasattr(model, 'extract_feat') and hasattr(model, 'decode_head'):
        features = model.extract_feat(images)
        auxiliary = getattr(model, 'auxiliary_head', None)
        heads = auxiliary if isinstance(auxiliary, nn.ModuleList) else [auxiliary]
        outputs = [_cascade_outputs(model.decode_head, features)]
        outputs += [head.forward(features) for head in heads if head is not None]
        return list(_tensors(outputs))
    if hasattr(model, 'data_preprocessor'):
        return list(_tensors(model(images, mode='tensor')))
    return list(_tensors(model(images)))


def compare(before: nn.Module, after: nn.Module, images: Tensor) -> Difference:
    """Run both models in eval mode, without autocast and gradients, and compare all outputs.

    Both draw the same random numbers, for heads that begin from some (SegNeXt's). The mode of every
    module and the global random state are put back afterwards.

    Raises:
        EquivalenceError: If the outputs differ in number or shape, or the original's are not
            finite.
    """
    device = images.device.type
    with torch.no_grad(), torch.autocast(device, enabled=False), _eval_mode(before, after):
        expected, actual = _seeded_outputs(before, images), _seeded_outputs(after, images)
    shapes = [[tuple(t.shape) for t in outputs] for outputs in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise EquivalenceError(f'output shapes were {shapes[0]} and are {shapes[1]} now')
    if not all(bool(t.isfinite().all()) for t in expected):
        raise EquivalenceError(
            'the original model gives NaN or infinite outputs: its weights are damaged or training '
            'diverged'
        )
    return difference(expected, actual)


def difference(expected: list[Tensor], actual: list[Tensor]) -> Difference:
    """Compare outputs of equal shapes; NaN in ``actual`` is an infinite difference."""
    max_abs = max_rel = 0.0
    for old, new in zip(expected, actual, strict=True):
        gap = (old.double() - new.double()).abs().nan_to_num(nan=float('inf')).max().item()
        scale = max(old.double().abs().max().item(), torch.finfo(torch.float32).tiny)
        max_abs, max_rel = max(max_abs, gap), max(max_rel, gap / scale)
    agreement = (expected[0].argmax(1) == actual[0].argmax(1)).double().mean().item()
    return Difference(max_abs, max_rel, agreement)


def require_equal(found: Difference, tolerance: float, what: str) -> None:
    """Refuse a difference past ``tolerance`` (relative).

    Raises:
        EquivalenceError: Naming the difference, the tolerance and what was compared.
    """
    if not found.max_rel <= tolerance:
        raise EquivalenceError(
            f'{what}: the rewritten model is not equal to the original: {found}; allowed is a '
            f'relative difference of {tolerance:.3g}. Please report it with the config; until then '
            'evaluate without rewrites'
        )


def _seeded_outputs(model: nn.Module, images: Tensor) -> list[Tensor]:
    devices = [images.device] if images.device.type == 'cuda' else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        return model_outputs(model, images)


def _cascade_outputs(decode_head: Any, features: Any) -> list[Any]:
    """What the decode head gives, or every head of a cascade, each fed by the one before it."""
    if not isinstance(decode_head, nn.ModuleList):
        return [decode_head.forward(features)]
    outputs = [decode_head[0].forward(features)]
    for head in decode_head[1:]:
        if hasattr(head, 'get_points_test'):
            outputs.append(_at_fixed_points(head, features, outputs[-1]))
        else:
            outputs.append(head.forward(features, outputs[-1]))
    return outputs[::-1]


def _at_fixed_points(head: Any, features: Any, coarse: Tensor) -> Tensor:
    """Logits of PointRend's head at points on a grid: (N, classes, points).

    The head itself chooses the points where the coarse logits (N, classes, h, w) are least certain;
    rounding may tip that choice, so that its refined map cannot tell whether two models are equal.
    """
    ticks = (torch.arange(POINTS, device=coarse.device, dtype=coarse.dtype) + 0.5) / POINTS
    points = torch.cartesian_prod(ticks, ticks).expand(len(coarse), -1, -1)
    fine = head._get_fine_grained_point_feats(head._transform_inputs(features), points)
    return head.forward(fine, head._get_coarse_point_feats(coarse, points))


def _tensors(outputs: Any) -> Iterable[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, dict):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, (list, tuple)):
        for value in outputs:
            yield from _tensors(value)


def _input_channels(model: nn.Module) -> int:
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


@contextmanager
def _eval_mode(*models: nn.Module) -> Any:
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
