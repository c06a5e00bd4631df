"""A real-time network: RepVGG-A1 at output stride 32 with PP-LiteSeg's light decoder.

Source of the decoder: Peng et al. 2022, arXiv 2204.02681 (UAFM with spatial attention, SPPM; channels of PP-LiteSeg-T).
Command: torchrun --nproc_per_node 4 tools/train.py configs/realtime/uafm_repvgg_a1.py \
    --launcher pytorch
Hardware: 4 GPUs, 4 crops of 1024x1024 each, as mmseg's BiSeNetV2; data and schedule are mmseg's,
with a warm-up over 1000 iterations.
Expected: unknown, it was not trained here.
Starts from ImageNet weights, which matter for so small a network (docs/cityscapes.md).
"""

_base_ = [
    '../_base_/models/uafm_repvgg.py',
    __import__('mmseg').__path__[0] + '/.mim/configs/_base_/datasets/cityscapes_1024x1024.py',
    __import__('mmseg').__path__[0] + '/.mim/configs/_base_/schedules/schedule_160k.py',
    '../_base_/default_runtime.py',
]

stride_8, stride_16 = _base_.model.auxiliary_head
model = dict(
    pretrained='https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-A1_8xb32_in1k_20221213-f81bf3df.pth',
    backbone=dict(arch='A1'),
    decode_head=dict(in_channels=[128, 256, 1280]),
    auxiliary_head=[dict(stride_8, in_channels=128), dict(stride_16, in_channels=256)],
)
del stride_8, stride_16
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='PolyLR', eta_min=0.0001, power=0.9, begin=1000, end=160000, by_epoch=False),
]
train_dataloader = dict(batch_size=4)
