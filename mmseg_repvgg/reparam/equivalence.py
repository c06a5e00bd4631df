"""Run two models on the same input, compare their outputs, and raise if they differ."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mmseg_repvgg.reparam.module_hooks import eval_mode

# Largest relative difference that rounding can cause, by the dtype of the weights. Models in half
# precision are compared in float32: there only the rounding of fused weights makes a difference.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 5e-2,
    torch.bfloat16: 3e-1,
}

POINTS = 32
"""Heads that work on points are compared on a grid with this many points per side."""


class EquivalenceError(RuntimeError):
    """The outputs of a rewritten model differ from the original's."""


@dataclass(frozen=True)
class Difference:
    """How far the outputs of two models are apart."""

    max_abs: float  # largest absolute difference
    max_rel: float  # largest difference over the output's largest absolute value
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
    return TOLERANCES.get(_dtype(model), TOLERANCES[torch.float32])


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def random_images(
    model: nn.Module, size: tuple[int, int] = (129, 193), batch: int = 1, seed: int = 0
) -> Tensor:
    """Standard normal images (batch, C_in, *size) of the model's device and dtype.

    They come from a generator of their own: the global random state is untouched.
    """
    like = next(model.parameters())
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, _input_channels(model), *size, generator=generator)
    return images.to(device=like.device, dtype=like.dtype)


def takes_images(model: nn.Module) -> bool:
    """Whether :func:`model_outputs` can run the model on images alone."""
    if not hasattr(model, 'data_preprocessor') or hasattr(model, 'decode_head'):
        return True
    try:
        inspect.signature(model.forward).bind(None, mode='tensor')
    except TypeError:
        return False
    return True


def step_outputs(model: Any, data_batch: Any) -> list[Tensor]:
    """The outputs of an mmengine model's ``val_step`` for a batch of a data loader."""
    return list(_tensors(model.val_step(data_batch)))


def model_outputs(model: Any, images: Tensor) -> list[Tensor]:
    """All raw outputs of a model for preprocessed images (N, C, H, W).

    For a segmentor: the logits of the decode head (in a cascade, of all its heads, the last one
    first) and of every auxiliary head. For another mmengine model: the outputs of its tensor mode.
    For a plain module: what it returns.
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


def compare(
    before: nn.Module,
    after: nn.Module,
    inputs: Any,
    outputs_of: Callable[[Any, Any], list[Tensor]] = model_outputs,
) -> Difference:
    """Run both models in eval mode and true float32, without gradients, and compare all outputs.

    Autocast and TF32 are off meanwhile; weights in half precision are compared in float32 copies.
    Both models draw the same random numbers, for heads that use them (SegNeXt's). The mode of every
    module and the global random state are restored afterwards.

    Args:
        before: The original.
        after: The rewritten model.
        inputs: Inputs of both models; by default images (N, C, H, W).
        outputs_of: ``(model, inputs) -> outputs``.

    Raises:
        EquivalenceError: If the outputs differ in number or shape, there are none, or the
            original's are not finite.
    """
    if _dtype(before) in (torch.float16, torch.bfloat16):
        before, after = (copy.deepcopy(model).float() for model in (before, after))
        inputs = inputs.float() if isinstance(inputs, Tensor) else inputs
    expected, actual = (repeatable_outputs(model, inputs, outputs_of) for model in (before, after))
    shapes = [[tuple(t.shape) for t in outputs] for outputs in (expected, actual)]
    if shapes[0] != shapes[1]:
        raise EquivalenceError(f'output shapes were {shapes[0]} and are {shapes[1]} now')
    if not expected:
        raise EquivalenceError(
            f'{type(before).__name__} gives no floating-point outputs to compare'
        )
    if not all(bool(t.isfinite().all()) for t in expected):
        raise EquivalenceError(
            'the original model gives NaN or infinite outputs: its weights are damaged or training '
            'diverged'
        )
    return difference(expected, actual)


def difference(expected: list[Tensor], actual: list[Tensor]) -> Difference:
    """Compare outputs of equal shapes; NaN in ``actual`` is an infinite difference."""
    # on the CPU, because Apple's MPS has no float64
    pairs = [(a.cpu().double(), b.cpu().double()) for a, b in zip(expected, actual, strict=True)]
    max_abs = max_rel = 0.0
    for old, new in pairs:
        if not old.numel():
            continue
        gap = (old - new).abs().nan_to_num(nan=float('inf')).max().item()
        scale = max(old.abs().max().item(), torch.finfo(torch.float32).tiny)
        max_abs, max_rel = max(max_abs, gap), max(max_rel, gap / scale)
    old_class, new_class = (_classes(output) for output in pairs[0])
    agreement = (old_class == new_class).double().mean().item()
    return Difference(max_abs, max_rel, agreement)


def _classes(output: Tensor) -> Tensor:
    """The best class of each position of (N, C, ...); with one channel, whether it is positive."""
    if output.dim() < 2 or output.shape[1] == 1:
        return output > 0
    return output.argmax(1)


def require_equal(found: Difference, tolerance: float, what: str) -> None:
    """Raise if the relative difference is above ``tolerance``.

    Raises:
        EquivalenceError: If it is; the message gives both and ``what``.
    """
    if not found.max_rel <= tolerance:
        raise EquivalenceError(
            f'{what}: the rewritten model is not equal to the original: {found}; the '
            f'allowed relative difference is {tolerance:.3g}. Please report it with the config; to '
            "evaluate without rewrites, remove dict(type='RepVGGDeployHook') from custom_hooks"
        )


def repeatable_outputs(
    model: nn.Module,
    inputs: Any,
    outputs_of: Callable[[Any, Any], list[Tensor]] = model_outputs,
) -> list[Tensor]:
    """Run a model in eval mode and true float32, without gradients, from a fixed random seed.

    The mode of every module, the global random state, TF32 and autocast are restored afterwards.

    Args:
        model: Any model.
        inputs: Its inputs; by default images (N, C, H, W).
        outputs_of: ``(model, inputs) -> outputs``.
    """
    devices = {p.device for p in model.parameters() if p.device.type == 'cuda'}
    with torch.no_grad(), _true_float32(), eval_mode(model), torch.random.fork_rng(devices):
        torch.manual_seed(0)
        return outputs_of(model, inputs)


@contextmanager
def _true_float32() -> Iterator[None]:
    """Switch off autocast and TF32, with which CUDA convs round float32 to 10 bits of mantissa."""
    backends: Any = torch.backends
    cudnn, matmul, mkldnn = backends.cudnn, backends.cuda.matmul, backends.mkldnn
    settings: list[tuple[Any, str, Any]] = []
    if not _is_tf32_mixed():  # else cudnn.flags(), in a forward pass, would raise
        settings.append((cudnn, 'allow_tf32', False))
    if hasattr(matmul, 'fp32_precision'):  # PyTorch 2.9 and later
        # on CPUs, oneDNN may compute in bfloat16
        kinds = (cudnn.conv, cudnn.rnn, matmul, mkldnn.conv, mkldnn.matmul)
        settings += [(kind, 'fp32_precision', 'ieee') for kind in kinds]
    else:
        settings.append((matmul, 'allow_tf32', False))
    before = [getattr(kind, name) for kind, name, _ in settings]
    try:
        for kind, name, value in settings:
            setattr(kind, name, value)
        with ExitStack() as stack:
            for device in ('cpu', 'cuda', 'mps', 'xpu'):
                if torch.amp.is_autocast_available(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for (kind, name, _), value in zip(settings, before, strict=True):
            setattr(kind, name, value)


def _is_tf32_mixed() -> bool:
    """Whether PyTorch's two interfaces disagree on cuDNN's TF32, so that reading it raises."""
    try:
        _ = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True
    return False


def _cascade_outputs(decode_head: Any, features: Any) -> list[Any]:
    """Outputs of the decode head, or of all heads of a cascade, the last one first."""
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
    rounding may change that choice, so its refined map cannot show whether two models are equal.
    """
    ticks = (torch.arange(POINTS, device=coarse.device, dtype=coarse.dtype) + 0.5) / POINTS
    points = torch.cartesian_prod(ticks, ticks).expand(len(coarse), -1, -1)
    fine = head._get_fine_grained_point_feats(head._transform_inputs(features), points)
    return head.forward(fine, head._get_coarse_point_feats(coarse, points))


def _tensors(outputs: Any) -> Iterable[Tensor]:
    """The floating-point tensors in dicts, sequences and mmengine's data elements."""
    if hasattr(outputs, 'to_dict'):
        outputs = outputs.to_dict()
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
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
