"""The branches of a RepVGG block -> one 3x3 conv (paper eq. 1-4 and Figure 4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mmseg_repvgg.reparam.batchnorm import fold_batchnorm, to_float64
from mmseg_repvgg.reparam.module_hooks import has_hooks
from mmseg_repvgg.reparam.other_families import (
    LEAVE_OUT,
    count_innermost,
    fuse_copy,
    fuse_in_place,
    fuse_method,
    was_fused,
)

NO_BLOCK = (
    '{} holds no RepVGG block and no other block with a fused form, so there are no branches '
    f'to fuse; use a RepVGG backbone, {LEAVE_OUT}'
)


def pad_to_3x3(kernel: Tensor) -> Tensor:
    """Zero-pad a 1x1, 1x3 or 3x1 kernel: (C_out, C_in, kh, kw) -> (C_out, C_in, 3, 3)."""
    rows, columns = (1 - size // 2 for size in kernel.shape[2:])
    return F.pad(kernel, (columns, columns, rows, rows))


def identity_kernel(like: Tensor, groups: int) -> Tensor:
    """The 3x3 kernel of the identity, in the shape, dtype and device of ``like``.

    If the numbers of input and output channels differ, it copies the first ones of each group, as
    ``torch.nn.init.dirac_`` and DiracNet's code do.
    """
    eye = torch.eye(len(like) // groups, like.shape[1], dtype=like.dtype, device=like.device)
    return pad_to_3x3(eye.repeat(groups, 1)[:, :, None, None])


def merge_branches(branches: Iterable[tuple[Tensor, nn.Module]]) -> tuple[Tensor, Tensor]:
    """Kernel and bias of the one 3x3 conv that equals the sum of a block's branches.

    Stride and dilation need no arithmetic: the centre tap of a 3x3 kernel sees the same pixels as a
    1x1 conv of the same stride and padding 0, whatever the dilation. A 1x3 kernel falls onto the
    middle row of the 3x3 kernel, a 3x1 kernel onto its middle column.

    Args:
        branches: Weight (C_out, C_in / groups, kh, kw) of each branch, and its BatchNorm, or
            ``nn.Identity`` if it has none.

    Returns:
        Kernel (C_out, C_in / groups, 3, 3) and bias (C_out,), float64.

    Raises:
        ValueError: If a norm cannot be fused (see :func:`fold_batchnorm`).
    """
    kernels, biases = [], []
    for weight, norm in branches:
        kernel, bias = to_float64(weight), to_float64(weight.new_zeros(len(weight)))
        if type(norm) is not nn.Identity:
            kernel, bias = fold_batchnorm(weight, None, norm)
        kernels.append(pad_to_3x3(kernel))
        biases.append(bias)
    return torch.stack(kernels).sum(0), torch.stack(biases).sum(0)


def fusible_blocks(model: nn.Module) -> dict[str, Any]:
    """The blocks of ``model`` that can be, or have been, re-parameterized, by name.

    A block is identified by a method without arguments that fuses it and has a usual name
    (``switch_to_deploy``, ``reparameterize``, ``fuse``). Of nested blocks only the outermost
    counts, which fuses the others; containers of RepVGG blocks do not count. A block without a
    fused form says why in ``cannot_fuse``.

    Raises:
        ValueError: If the model holds no such block, or one that cannot be fused.
    """
    reasons = {getattr(m, 'cannot_fuse', '') for m in model.modules()} - {''}
    if reasons:
        raise ValueError('; '.join(sorted(reasons)))
    blocks: dict[str, Any] = {}
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        method = 'fused' if was_fused(module) else fuse_method(module)
        _, *parts = module.modules()
        is_container = any(hasattr(part, 'get_equivalent_kernel_bias') for part in parts)
        replaces_model = module is model and method == 'fuse'
        if method and module not in inside and not is_container and not replaces_model:
            blocks[name] = module
            inside.update(parts)
    if not blocks:
        raise ValueError(NO_BLOCK.format(type(model).__name__))
    return blocks


def fuse_branches(model: nn.Module) -> int:
    """Switch every block of ``model`` that can be re-parameterized to its fused form; in place.

    RepVGG blocks are fused in float64. Blocks of other families fuse themselves, after a fused copy
    was compared with the original; so do RepVGG blocks with hooks or unknown modules inside.
    Backbones get ``deploy=True``, so that they fuse training weights on loading.

    Returns:
        The number of blocks fused: 0 if all had been fused before.

    Raises:
        ValueError: As :func:`fusible_blocks`, or if the weights of a block cannot be fused, or its
            own method fails; the model is then unchanged.
        EquivalenceError: If a block's own method changes its outputs; the model is then
            unchanged.
    """
    convs: list[tuple[Any, nn.Conv2d]] = []
    others: list[nn.Module] = []
    blocks = fusible_blocks(model)
    for name, block in blocks.items():
        if _is_plain(block):
            if not block.deploy:
                convs.append((block, block.fused_conv()))
        elif not was_fused(block) and fuse_copy(name, block) is not None:
            others.append(block)
    count = len(convs) + sum(map(count_innermost, others))
    if not count and all(fuse_method(b) == 'fuse' and not was_fused(b) for b in blocks.values()):
        raise ValueError(NO_BLOCK.format(type(model).__name__))  # these methods did something else
    for block, conv in convs:
        block.become_fused(conv)
    fused = {block: fuse_in_place(block) for block in others}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in fused:
                setattr(parent, name, fused[child])
    backbones: Iterator[Any] = model.modules()
    for backbone in backbones:
        if hasattr(backbone, 'training_form') and getattr(backbone, 'deploy', None) is False:
            backbone.deploy = True
    return count


def _is_plain(block: Any) -> bool:
    """Whether ``block`` is a RepVGG block with only known modules inside, and no hooks on them."""
    package = type(block).__module__.partition('.')[0]
    return hasattr(block, 'fused_conv') and not any(
        has_hooks(part)
        or parametrize.type_before_parametrizations(part).__module__.partition('.')[0]
        not in ('torch', package)
        for part in list(block.modules())[1:]
    )
