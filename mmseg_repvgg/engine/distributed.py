"""Training and evaluation in several processes on CPUs, where mmengine expects GPUs."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from mmengine.utils.dl_utils import set_multi_processing
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_repvgg.engine.config_types import type_name
from mmseg_repvgg.reparam.batchnorm import PLAIN_FORWARDS


def prepare_for_cpu(cfg: Config, launcher: str) -> None:
    """On a machine without a GPU, let a config run in the processes of a launcher.

    The process group is joined here, with gloo: mmengine's ``init_dist`` calls
    ``torch.cuda.set_device``, which raises without a GPU. mmengine's Runner also passes the number
    of a GPU to ``DistributedDataParallel``, so the config gets a wrapper that ignores it.

    Args:
        cfg: The config, which is changed.
        launcher: One of :data:`mmseg_repvgg.engine.launch.LAUNCHERS`.
    """
    if launcher == 'none' or get_device() != 'cpu':
        return
    cfg.merge_from_dict({'env_cfg.dist_cfg.backend': 'gloo'})
    wrapper = cfg.get('model_wrapper_cfg') or dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,  # both are the defaults of mmengine
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    if type_name(wrapper, 'MMDistributedDataParallel') == 'MMDistributedDataParallel':
        cfg.model_wrapper_cfg = dict(wrapper, type='CPUDistributedDataParallel')
    if not is_distributed():
        set_multi_processing(**cfg.env_cfg.get('mp_cfg', {}), distributed=True)
        with mock.patch('torch.cuda.set_device'):
            init_dist(launcher, **cfg.env_cfg.dist_cfg)


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's wrapper for models on CPUs.

    Their SyncBatchNorms, which PyTorch supports on GPUs only, synchronise too. mmengine's Runner
    passes ``device_ids`` to every wrapper of this kind: numbers of GPUs, which are not used.

    Args:
        module: The model.
        device_ids: Not used.
        **kwargs: As for :class:`torch.nn.parallel.DistributedDataParallel`.
    """

    def __init__(self, module: nn.Module, device_ids: Any = None, **kwargs: Any) -> None:
        count = sync_on_cpu(module)
        super().__init__(module=module, **kwargs)
        if count:
            text = f'{count} SyncBN layers compute the statistics of all processes on CPUs'
            print_log(text, logger='current')


def sync_on_cpu(model: nn.Module) -> int:
    """Let a model's SyncBatchNorms, which PyTorch supports on GPUs only, synchronise on CPUs.

    Modules and parameters stay the same objects, so wrappers and optimizers may hold them.

    Returns:
        The number of SyncBatchNorms.
    """
    found: list[Any] = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm)]
    for module in found:
        module.__class__ = CPUSyncBatchNorm
    return len(found)


class CPUSyncBatchNorm(_BatchNorm):
    """Statistics over the whole batch of all processes, for tensors on CPUs.

    ``nn.SyncBatchNorm`` refuses them ("expected input tensor to be on GPU"), and
    ``DistributedDataParallel`` refuses models on CPUs that have one, so this is not a subclass.
    Like ``nn.SyncBatchNorm`` it computes in float32 for inputs of half precision.
    """

    process_group: distributed.ProcessGroup | None

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (N, C, ...), and update the running statistics."""
        group = self.process_group or distributed.group.WORLD
        if (
            not self.training
            or not distributed.is_initialized()
            or distributed.get_world_size(group) < 2
        ):
            return super().forward(input)
        dtype, input = input.dtype, input.to(torch.promote_types(input.dtype, torch.float32))
        others = [dim for dim in range(input.dim()) if dim != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        local = input.new_tensor([input.numel() // input.shape[1]])
        # a second pass for the variance: E[x^2] - E[x]^2 would lose digits
        sums = _AllReduceSum.apply(torch.cat([input.sum(others), local]), group)
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = input - mean.view(shape)
        variance = _AllReduceSum.apply(centred.square().sum(others), group) / count
        if self.track_running_stats:
            self._update(mean.detach(), (variance * count / (count - 1)).detach())
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(dtype)

    _check_input_dim = nn.SyncBatchNorm._check_input_dim

    def _update(self, mean: Tensor, variance: Tensor) -> None:
        buffers: Any = self
        buffers.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:  # a cumulative average
            share = 1 / buffers.num_batches_tracked.item()
        buffers.running_mean.lerp_(mean.to(buffers.running_mean.dtype), share)
        buffers.running_var.lerp_(variance.to(buffers.running_var.dtype), share)


PLAIN_FORWARDS.add(CPUSyncBatchNorm.forward)  # so that it can be fused


class _AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over all processes; backward sums the gradients.

    The version in ``torch.distributed.nn.functional`` is deprecated in favour of a private module.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:  # type: ignore[override]
        ctx.group = group
        total = tensor.clone()
        distributed.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.clone()
        distributed.all_reduce(total, group=ctx.group)
        return total, None
