"""A fused network, and the same network with its channels rescaled, which ruins int8."""

import copy

import torch
from torch import nn

from mmseg_repvgg.checkpoint.reading import read_checkpoint
from mmseg_repvgg.checkpoint.writing import write_checkpoint
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.engine.launch import load_config
from mmseg_repvgg.reparam.equivalence import compare, random_images

MOST = 5
"""Channels are multiplied by 2^-5 to 2^5: over three orders of magnitude."""


@torch.no_grad()
def rescale(model, seed=0):
    """Multiply output channels of a fused backbone, and divide the weights that read them.

    Those of the last block of a stage that heads read stay as they are.
    """
    backbone, generator = model.backbone, torch.Generator().manual_seed(seed)
    auxiliary = model.auxiliary_head
    others = auxiliary if isinstance(auxiliary, nn.ModuleList) else [auxiliary]
    heads = [model.decode_head, *others]
    read = {stage for head in heads for stage in torch.tensor(head.in_index).reshape(-1).tolist()}
    blocks, is_free = [backbone.stem], [True]
    for index, stage in enumerate(backbone.stages):
        blocks += stage
        is_free += [True] * (len(stage) - 1) + [index not in read]
    for before, after, free in zip(blocks, blocks[1:], is_free, strict=False):
        giving, reading = before.branch_reparam, after.branch_reparam
        assert reading.groups == 1 and type(before.act).__name__ == 'ReLU'
        if free:
            drawn = torch.randint(-MOST, MOST + 1, (giving.out_channels,), generator=generator)
            scales = 2.0**drawn
            giving.weight *= scales.view(-1, 1, 1, 1)
            giving.bias *= scales
            reading.weight /= scales.view(1, -1, 1, 1)


def write_networks(cfg, checkpoint, folder):
    """Write a network fused, and rescaled as well; both compute the same, bit for bit.

    Returns:
        The config of both, and the two checkpoints by name.
    """
    fused, rescaled = folder / 'fused.pth', folder / 'rescaled.pth'
    fuse_checkpoint(cfg, checkpoint, fused, ['branches', 'batchnorm'], num_images=0)
    cfg = copy.deepcopy(cfg)  # with the training set, which calibrates
    cfg.model = load_config(fused.with_suffix('.py')).model
    before, after = (load_segmentor(cfg, fused)[0] for _ in range(2))
    rescale(after)
    stems = [model.backbone.stem.branch_reparam.weight for model in (before, after)]
    assert not torch.equal(*stems)
    assert compare(before, after, random_images(before)).max_abs == 0
    write_checkpoint(dict(read_checkpoint(fused), state_dict=after.state_dict()), rescaled)
    return cfg, dict(fused=fused, rescaled=rescaled)
