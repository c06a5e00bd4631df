"""PSPNet with a RepVGG backbone, output stride 8 (paper, section 4.3).

A leaf config gives the backbone's ``arch`` and ``dilations`` and both heads' ``in_channels``.
``align_corners``, the auxiliary weight 0.4 and the loss, a mean over the labelled pixels only, are
those of semseg, the code base of PSPNet. The pyramid of mmseg's PSPHead has 512 channels; semseg's
has a quarter of the backbone's.
Training on one GPU needs at least 2 images: the pyramid's 1x1 pool feeds a BatchNorm.
"""

norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(713, 713),
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(
        type='DilatedRepVGG',
        strides=(2, 2, 1, 1),
        out_indices=(0, 1, 2, 3),
        norm_cfg=norm_cfg,
    ),
    decode_head=dict(
        type='PSPHead',
        in_index=3,
        channels=512,
        pool_scales=(1, 2, 3, 6),
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True, loss_weight=1.0
        ),
    ),
    auxiliary_head=dict(
        type='FCNHead',
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=19,
        norm_cfg=norm_cfg,
        align_corners=True,
        loss_decode=dict(
            type='CrossEntropyLoss', use_sigmoid=False, avg_non_ignore=True, loss_weight=0.4
        ),
    ),
    train_cfg=dict(),
    # semseg: windows of the training size, the stride two thirds of it
    test_cfg=dict(mode='slide', crop_size=(713, 713), stride=(476, 476)),
)
