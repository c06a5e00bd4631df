"""OCRNet on RepVGGplus-L2pse, output stride 8, stages 4 and 5 dilated.

A child of mmseg's own config, written by
python tools/swap_backbone.py ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024 --arch L2pse configs/dropin/ocrnet_repvgg_l2pse.py
Data, heads, losses and optimizer (SGD, 0.02, weight decay 5e-4, 40k iterations) are mmseg's; a
warm-up over 1000 iterations and the deploy hook are added.
Command: torchrun --nproc_per_node 8 tools/train.py configs/dropin/ocrnet_repvgg_l2pse.py --launcher pytorch
Hardware: 8 GPUs, 2 crops of 512x1024 each.
Expected: unknown, it was not trained here. mmseg's OCRNet on ResNet-101 by this recipe has 80.30
mIoU on Cityscapes val, quoted from its model zoo. Cost: docs/dropin.md.
Starts from random weights, because mmpretrain publishes none of L2pse; `--weights FILE` of the tool
above makes it start from the official checkpoint (docs/migration.md).
"""

_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/ocrnet/ocrnet_r101-d8_8xb2-40k_cityscapes-512x1024.py',
]

custom_imports = dict(imports=['mmseg_repvgg'], allow_failed_imports=False)
model = dict(
    pretrained=None,
    backbone=dict(
        _delete_=True,
        type='DilatedRepVGG',
        arch='L2pse',
        strides=(2, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    ),
    decode_head=[
        dict(
            type='FCNHead',
            in_channels=640,
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
            in_channels=2560,
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
    dict(type='PolyLR', eta_min=0.0002, power=0.9, begin=1000, end=40000, by_epoch=False),
]
custom_hooks = [dict(type='RepVGGDeployHook')]
