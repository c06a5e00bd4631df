"""UPerNet on RepVGG-D2se, output stride 32.

A child of mmseg's own config, written by
python tools/swap_backbone.py upernet_r101_4xb2-80k_cityscapes-512x1024 --arch D2se --variant none configs/dropin/upernet_repvgg_d2se.py
Data, heads, losses and optimizer (SGD, 0.01, weight decay 5e-4, 80k iterations) are mmseg's; a
warm-up over 1000 iterations and the deploy hook are added.
Command: torchrun --nproc_per_node 4 tools/train.py configs/dropin/upernet_repvgg_d2se.py --launcher pytorch
Hardware: 4 GPUs, 2 crops of 512x1024 each.
Expected: unknown, it was not trained here. mmseg's UPerNet on ResNet-101 by this recipe has 79.40
mIoU on Cityscapes val, quoted from its model zoo. Cost: docs/dropin.md.
Starts from ImageNet weights, as mmseg's does (docs/cityscapes.md).
"""

_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/upernet/upernet_r101_4xb2-80k_cityscapes-512x1024.py',
]

custom_imports = dict(imports=['mmseg_repvgg'], allow_failed_imports=False)
model = dict(
    pretrained='https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_20210909-cf3139b7.pth',
    backbone=dict(
        _delete_=True,
        type='DilatedRepVGG',
        arch='D2se',
        strides=(2, 2, 2, 2),
        dilations=(1, 1, 1, 1),
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=dict(in_channels=[160, 320, 640, 2560]),
    auxiliary_head=dict(in_channels=640),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='PolyLR', eta_min=0.0001, power=0.9, begin=1000, end=80000, by_epoch=False),
]
custom_hooks = [dict(type='RepVGGDeployHook')]
