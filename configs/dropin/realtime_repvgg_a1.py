"""A real-time network: RepVGG-A1 at output stride 32 with an FPN of 128 channels.

Command: torchrun --nproc_per_node 4 tools/train.py configs/dropin/realtime_repvgg_a1.py \
    --launcher pytorch
Weights (of A1), hardware, expected result, cost and speed: as realtime_repvgg_a0.py.
"""

_base_ = './realtime_repvgg_a0.py'

model = dict(
    pretrained='https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-A1_8xb32_in1k_20221213-f81bf3df.pth',
    backbone=dict(arch='A1'),
    neck=dict(in_channels=[128, 256, 1280], out_channels=128),
    decode_head=dict(in_channels=[128, 128, 128], channels=128),
    auxiliary_head=dict(in_channels=128),
)
