"""Blocks that fuse themselves by a method: MobileOne, RepViT, FastViT, mmpretrain's RepVGG, ...

What such a method does is unknown, so a copy is fused first and compared with the original.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmseg_repvgg.reparam.equivalence import EquivalenceError, compare, tolerance_of
from mmseg_repvgg.reparam.module_hooks import computed_weights, eval_mode

FUSE_METHODS = ('switch_to_deploy', 'reparameterize', 'fuse')
"""The usual names. ``fuse`` may return the module that replaces the block, as in timm."""

LEAVE_OUT = "or leave 'branches' out of the rewrites"


def fuse_method(module: nn.Module) -> str:
    """The name of the method by which ``module`` fuses itself, or ''.

    The method takes no arguments, unlike a VAE's ``reparameterize(mean, log_var)``.
    """
    for name in FUSE_METHODS:
        method = getattr(type(module), name, None)
        if inspect.isfunction(method):
            try:
                inspect.signature(method).bind(module)
            except TypeError:
                continue
            return name
    return ''


def was_fused(block: nn.Module) -> bool:
    """Whether ``block`` is what :func:`fuse_in_place` returned, so that its methods are done."""
    return getattr(block, 'fused_by_its_methods', False)


def count_innermost(block: nn.Module) -> int:
    """The number of modules in ``block`` that fuse themselves and hold no other such module."""
    fusing = [m for m in block.modules() if fuse_method(m)]
    return sum(all(m is part or part not in fusing for part in m.modules()) for m in fusing)


def fuse_in_place(block: nn.Module) -> nn.Module:
    """Fuse a block by its own methods; the global random state is unchanged.

    Returns:
        The module that replaces ``block``, often ``block`` itself.
    """
    like, default = _like(block), torch.get_default_dtype()
    devices = [like.device] if like.is_cuda else []
    torch.set_default_dtype(like.dtype)  # for modules that the methods build
    try:
        random = torch.random.fork_rng(devices=devices)
        with like.device, random, torch.no_grad(), computed_weights(block):
            fused = _fuse_itself(block)
    finally:
        torch.set_default_dtype(default)
    fused.fused_by_its_methods = True  # type: ignore[assignment]
    return fused if fused is block else fused.train(block.training)


def _fuse_itself(block: nn.Module) -> nn.Module:
    """Call the block's method, then those of the modules inside, as timm does."""
    for module in block.modules():  # mmpretrain's blocks refuse SyncBN, which is BN in eval mode
        norm_cfg = getattr(module, 'norm_cfg', None)
        if isinstance(norm_cfg, dict) and norm_cfg.get('type') == 'SyncBN':
            module.norm_cfg = dict(norm_cfg, type='BN')  # type: ignore[assignment]
    method = fuse_method(block)
    result = getattr(block, method)() if method else None
    fused = result if isinstance(result, nn.Module) else block
    for name, child in list(fused.named_children()):
        replaced = _fuse_itself(child)
        if replaced is not child:
            setattr(fused, name, replaced)
    return fused


def fuse_copy(name: str, block: nn.Module) -> nn.Module | None:
    """Fuse a copy of ``block`` by its own methods and compare it with the original.

    Args:
        name: Name of the block, for messages.
        block: Any module with a :func:`fuse_method`; it is unchanged.

    Returns:
        The fused copy, or None if the methods change nothing: the block is fused already, or a
        method of that name does something else.

    Raises:
        ValueError: If a method fails, or there is no input to compare with.
        EquivalenceError: If the outputs of the copy and of ``block`` differ.
    """
    what = f'{type(block).__name__}.{fuse_method(block)}() of {name or "the model"!r}'
    try:
        with torch.no_grad(), computed_weights(block):  # weights without a graph, to be copied
            trial = copy.deepcopy(block)
        fused = fuse_in_place(trial)
    except Exception as error:
        raise ValueError(
            f'{what} fails with {type(error).__name__}: {error}. Change the block, {LEAVE_OUT}'
        ) from error
    if type(fused) is type(block) and list(fused.state_dict()) == list(block.state_dict()):
        return None
    inputs = next(_working_inputs(block), None)
    if inputs is None:
        raise ValueError(
            f'{what} cannot be checked: the block does not run on an image or feature map alone. '
            f'Fuse it first, {LEAVE_OUT}'
        )
    try:
        found = compare(block, fused, inputs)
        if not found.max_rel <= tolerance_of(block):
            raise EquivalenceError(str(found))
    except EquivalenceError as error:
        raise EquivalenceError(
            f'{what} changes the outputs of the block: {error}. Change the block, {LEAVE_OUT}'
        ) from error
    return fused


def _like(block: nn.Module) -> Tensor:
    tensors = (*block.parameters(), *block.buffers())
    return next((t for t in tensors if t.is_floating_point()), torch.empty(0))


def _working_inputs(block: nn.Module) -> Iterator[Tensor]:
    """Random inputs that the block takes: images, feature maps, tokens or vectors."""
    like, generator = _like(block), torch.Generator().manual_seed(0)
    sizes = ('in_channels', 'in_features', 'num_features')
    widths = [getattr(m, size) for m in block.modules() for size in sizes if hasattr(m, size)]
    for width in dict.fromkeys(w for w in widths if isinstance(w, int)):
        sides = (97, 224) if width <= 4 else (17,)  # images for a network; feature maps for a block
        for shape in (*((width, side, side) for side in sides), (49, width), (width,)):
            inputs = torch.randn(1, *shape, generator=generator).to(like)
            try:
                with eval_mode(block):
                    block(inputs)
            except Exception:
                continue
            yield inputs
