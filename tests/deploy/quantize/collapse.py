"""Int8 of a network whose channels were rescaled: what it loses, and what equalizing wins back.

Command: python -m tests.deploy.quantize.collapse TRAINING_CONFIG CHECKPOINT FOLDER

It writes the fused network, and the same network rescaled, into FOLDER, exports both in every
setting, and prints a table.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch

from mmseg_repvgg.checkpoint.reading import read_checkpoint
from mmseg_repvgg.checkpoint.writing import write_checkpoint
from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.load_segmentor import load_segmentor
from mmseg_repvgg.deploy.quantize.options import Int8Options
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
    heads = model.decode_head, model.auxiliary_head
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
    cfg = load_config(fused.with_suffix('.py'))
    before, after = (load_segmentor(cfg, fused)[0] for _ in range(2))
    rescale(after)
    stems = [model.backbone.stem.branch_reparam.weight for model in (before, after)]
    assert not torch.equal(*stems)
    assert compare(before, after, random_images(before)).max_abs == 0
    write_checkpoint(dict(read_checkpoint(fused), state_dict=after.state_dict()), rescaled)
    return cfg, dict(fused=fused, rescaled=rescaled)


def main():
    """Parse the arguments, export, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('folder', type=Path)
    parser.add_argument('--data-root', help='of the config of demo scenes')
    parser.add_argument('--calibration-images', type=int, default=32)
    parser.add_argument('--check-images', type=int, default=40)
    args = parser.parse_args()
    cfg = load_config(args.config)
    for loader in ('train', 'val', 'test') if args.data_root else ():
        cfg[f'{loader}_dataloader'].dataset.data_root = args.data_root
    args.folder.mkdir(parents=True, exist_ok=True)
    cfg, networks = write_networks(cfg, args.checkpoint, args.folder)
    settings = itertools.product(networks, (False, True), (False, True), ('.onnx', '.xml'))
    for name, equalize, per_tensor, suffix in settings:
        int8 = Int8Options(
            images=args.calibration_images,
            check_images=args.check_images,
            agreement=0,
            miou_drop=100,
            equalize=equalize,
            per_tensor=per_tensor,
        )
        options = Options(cfg.get('size'), int8=int8)
        report = export(cfg, networks[name], args.folder / f'm{suffix}', options=options)
        for quality in report.converted:
            row = dict(network=name, equalize=equalize, per_tensor=per_tensor, format=suffix)
            row.update(runtime=quality.runtime, miou=quality.miou, agreement=quality.agreement)
            row['equalized'] = report.info.quantization['equalized']
            print(json.dumps(row), flush=True)


if __name__ == '__main__':
    main()
