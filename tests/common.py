"""Small models and random statistics, shared by the tests."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# three narrow stages: quick, with identity and non-identity blocks in stages of several layers
TINY = dict(num_blocks=(2, 3, 3, 1), width_factor=(0.125, 0.125, 0.125, 0.125))


def randomise_batchnorms(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every BatchNorm the weight, bias, mean and variance of a trained one; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, _BatchNorm):
            draw = torch.rand(4, norm.num_features, generator=generator).to(norm.running_mean)
            norm.weight.data.copy_(0.5 + draw[0])
            norm.bias.data.copy_(draw[1] - 0.5)
            norm.running_mean.copy_(draw[2] - 0.5)
            norm.running_var.copy_(0.5 + 1.5 * draw[3])
    model.eval()
    return model


def segmentor_cfg(arch, widths: tuple[int, ...], channels: int = 16, **backbone) -> dict:
    """A PSPNet on DilatedRepVGG, output stride 8, with an auxiliary head."""
    norm_cfg = dict(type='BN')
    head = dict(num_classes=19, norm_cfg=norm_cfg, align_corners=True, channels=channels)
    return dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(64, 64)),
        backbone=dict(
            dict(
                type='DilatedRepVGG',
                arch=arch,
                strides=(2, 2, 1, 1),
                dilations=(1, 1, 2, 4),
                norm_cfg=norm_cfg,
            ),
            **backbone,
        ),
        decode_head=dict(head, type='PSPHead', in_channels=widths[-1], in_index=3),
        auxiliary_head=dict(
            head,
            type='FCNHead',
            in_channels=widths[-2],
            in_index=2,
            num_convs=1,
            concat_input=False,
        ),
        test_cfg=dict(mode='whole'),
    )


def runner_cfg(data_root, work_dir, max_iters: int = 4, val_interval: int = 2, **changes) -> dict:
    """A training of a tiny PSPNet on scenes of 128x64, with validation; keys override."""
    from mmengine.config import Config

    pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
    pack = [dict(type='PackSegInputs')]

    def loader(split: str, batch_size: int, sampler: dict, transforms: list) -> dict:
        return dict(
            batch_size=batch_size,
            num_workers=0,
            sampler=sampler,
            dataset=dict(
                type='CityscapesDataset',
                data_root=str(data_root),
                data_prefix=dict(img_path=f'leftImg8bit/{split}', seg_map_path=f'gtFine/{split}'),
                pipeline=transforms,
            ),
        )

    crop = [dict(type='RandomCrop', crop_size=(64, 64)), dict(type='RandomFlip', prob=0.5)]
    val = loader('val', 1, dict(type='DefaultSampler', shuffle=False), [*pipeline, *pack])
    cfg = dict(
        default_scope='mmseg',
        model=segmentor_cfg(TINY, (8, 8, 16, 32, 64)),
        train_dataloader=loader(
            'train', 2, dict(type='InfiniteSampler', shuffle=True), [*pipeline, *crop, *pack]
        ),
        val_dataloader=val,
        test_dataloader=val,
        val_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        test_evaluator=dict(type='IoUMetric', iou_metrics=['mIoU']),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=val_interval),
        val_cfg=dict(type='ValLoop'),
        test_cfg=dict(type='TestLoop'),
        optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9)),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=max_iters),
        ),
        custom_hooks=[dict(type='RepVGGDeployHook')],
        log_processor=dict(by_epoch=False, window_size=1),
        visualizer=dict(
            type='SegLocalVisualizer',
            vis_backends=[dict(type='LocalVisBackend')],
            name=str(work_dir),
        ),
        work_dir=str(work_dir),
        randomness=dict(seed=0, deterministic=True),
        log_level='WARNING',
    )
    cfg.update(changes)
    return Config(cfg)
