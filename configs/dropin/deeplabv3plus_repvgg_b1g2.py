"""DeepLabV3+ on RepVGG-B1g2, output stride 8, stages 4 and 5 dilated as in the paper.

A child of mmseg's own config, written by
python tools/swap_backbone.py deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024 --arch B1g2 --variant full configs/dropin/deeplabv3plus_repvgg_b1g2.py
Data, heads, losses and optimizer (SGD, 0.01, weight decay 5e-4, 40k iterations) are mmseg's; a
warm-up over 1000 iterations and the deploy hook are added.
Command: torchrun --nproc_per_node 4 tools/train.py configs/dropin/deeplabv3plus_repvgg_b1g2.py --launcher pytorch
Hardware: 4 GPUs, 2 crops of 512x1024 each.
Expected: unknown, it was not trained here. mmseg's DeepLabV3+ on ResNet-50 by this recipe has 79.61
mIoU on Cityscapes val, quoted from its model zoo. Cost and speed: docs/dropin.md.
Starts from ImageNet weights, as mmseg's does (docs/cityscapes.md).
"""

_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/deeplabv3plus/deeplabv3plus_r50-d8_4xb2-40k_cityscapes-512x1024.py',
]

custom_imports = dict(imports=['mmseg_repvgg'], allow_failed_imports=False)
model = dict(
    pretrained='https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-B1g2_8xb32_in1k_20221213-ae6428fd.pth',
    backbone=dict(
        _delete_=True,
        type='DilatedRepVGG',
        arch='B1g2',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(c1_in_channels=128),
    auxiliary_head=dict(in_channels=512),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='PolyLR', eta_min=0.0001, power=0.9, begin=1000, end=40000, by_epoch=False),
]
custom_hooks = [dict(type='RepVGGDeployHook')]
