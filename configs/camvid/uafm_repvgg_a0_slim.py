"""RepVGG-A0 with 5 layers in stage 4 and 512 channels in stage 5, and PP-LiteSeg's decoder.

Command: mmseg-repvgg train configs/camvid/uafm_repvgg_a0_slim.py
Hardware: a CPU.
Expected: mIoU 48.82 %, pixel accuracy 86.99 % of val (seed 0; benchmarks/camvid).
"""

_base_ = [
    '../_base_/models/uafm_repvgg.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/camvid.py',
    '../_base_/default_runtime.py',
]

head = dict(
    num_classes=11,
    sampler=dict(type='HardPixelSampler', thresh=0.7, min_kept=256 * 320 // 16),
)
stride_8, stride_16 = _base_.model.auxiliary_head
model = dict(
    data_preprocessor=dict(size=(256, 320)),
    backbone=dict(arch=dict(num_blocks=(2, 4, 5, 1), width_factor=(0.75, 0.75, 0.75, 1.0))),
    decode_head=dict(in_channels=[96, 192, 512], **head),
    auxiliary_head=[
        dict(stride_8, in_channels=96, **head),
        dict(stride_16, in_channels=192, **head),
    ],
)
del head, stride_8, stride_16
