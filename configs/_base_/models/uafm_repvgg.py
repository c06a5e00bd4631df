"""PP-LiteSeg's decoder on the last three stages of RepVGG: maps of strides 8, 16 and 32.

A leaf config gives the backbone's ``arch`` and the heads' ``in_channels``. The decoder is that of
PP-LiteSeg-T (Peng et al. 2022) with lateral 1x1 convs, as RepVGG's last stage is wide. There is no
dilation; the logits have stride 8. As in PP-LiteSeg's own configs, only pixels that the network is
not yet sure about are learned, at least a sixteenth of them, and the loss is their mean (OHEM,
Shrivastava et al. 2016; docs/recipes.md#hard-pixels). The classifiers start as those of PIDNet and
DDRNet in mmseg (docs/recipes.md#the-classifier). Auxiliary heads read the maps of strides 8 and 16,
as those of PIDNet and DDRNet read stride 8 (docs/recipes.md#auxiliary-heads).
"""

norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    size=(1024, 1024),
)
classifier = dict(type='Kaiming', override=dict(name='conv_seg'))
hard_pixels = dict(type='HardPixelSampler', thresh=0.7, min_kept=1024 * 1024 // 16)
head = dict(
    dropout_ratio=0.1,
    sampler=hard_pixels,
    init_cfg=classifier,
    num_classes=19,
    norm_cfg=norm_cfg,
    align_corners=False,
)
auxiliary = dict(
    type='FCNHead',
    channels=64,
    num_convs=1,
    concat_input=False,
    loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    **head,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='DilatedRepVGG', out_indices=(1, 2, 3), norm_cfg=norm_cfg),
    decode_head=dict(
        type='UAFMHead',
        in_index=[0, 1, 2],
        fusion_channels=[32, 64, 128],
        channels=64,
        attention='spatial',
        lateral_kernel_size=1,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        **head,
    ),
    auxiliary_head=[dict(auxiliary, in_index=0), dict(auxiliary, in_index=1)],
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
del head, auxiliary
