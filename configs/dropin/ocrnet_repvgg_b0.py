"""OCRNet on RepVGG-B0, output stride 8, stages 4 and 5 dilated.

A child of mmseg's own config, written by
python tools/swap_backbone.py ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024 --arch B0 configs/dropin/ocrnet_repvgg_b0.py
Data, heads, losses and optimizer (SGD, 0.01, weight decay 5e-4, 40k iterations) are mmseg's; a
warm-up over 1000 iterations and the deploy hook are added.
Command: torchrun --nproc_per_node 4 tools/train.py configs/dropin/ocrnet_repvgg_b0.py --launcher pytorch
Hardware: 4 GPUs, 2 crops of 512x1024 each.
Expected: unknown, it was not trained here. mmseg's OCRNet on ResNet-101 by this recipe has 80.09
mIoU on Cityscapes val, quoted from its model zoo. Cost and speed: docs/dropin.md.
Starts from ImageNet weights, as mmseg's does (docs/cityscapes.md).
"""

_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
]

custom_imports = dict(imports=['mmseg_repvgg'], allow_failed_imports=False)
model = dict(
    pretrained='https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-B0_8xb32_in1k_20221213-5091ecc7.pth',
    backbone=dict(
        _delete_=True,
        type='DilatedRepVGG',
        arch='B0',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=[
        dict(
            type='FCNHead',
            in_channels=256,
            in_index=2,
            channels=256,
            num_convs=1,
            concat_input=False,
            dropout_ratio=0.1,
            num_classes=19,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        ),
        dict(
            type='OCRHead',
            in_channels=1280,
            in_index=3,
            channels=512,
            ocr_channels=256,
            dropout_ratio=0.1,
            num_classes=19,
            norm_cfg=dict(type='SyncBN', requires_grad=True),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        ),
    ],
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type='PolyLR', eta_min=0.0001, power=0.9, begin=1000, end=40000, by_epoch=False),
]
custom_hooks = [dict(type='RepVGGDeployHook')]
