"""RepVGG-A0 with PP-LiteSeg's decoder on CamVid, from scratch.

Command: mmseg-repvgg train configs/camvid/uafm_repvgg_a0.py
Hardware: a CPU.
Expected: mIoU 43.21 %, pixel accuracy 83.96 % of val (seed 0; benchmarks/camvid).
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
    backbone=dict(arch='A0'),
    decode_head=dict(in_channels=[96, 192, 1280], **head),
    auxiliary_head=[
        dict(stride_8, in_channels=96, **head),
        dict(stride_16, in_channels=192, **head),
    ],
)
del head, stride_8, stride_16
