"""RepVGG-A0 with 5 layers in stage 4 and 512 channels in stage 5, and PP-LiteSeg's decoder.

Command: mmseg-repvgg train configs/camvid/uafm_repvgg_a0_slim.py
Hardware: a CPU.
Expected: mIoU 48.82 %, pixel accuracy 86.99 % of val (seed 0; benchmarks/camvid).
"""

_base_ = './uafm_repvgg_a0_short.py'

model = dict(
    backbone=dict(arch=dict(num_blocks=(2, 4, 5, 1), width_factor=(0.75, 0.75, 0.75, 1.0))),
    decode_head=dict(in_channels=[96, 192, 512]),
)
