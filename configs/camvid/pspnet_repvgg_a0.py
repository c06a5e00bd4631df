"""PSPNet on RepVGG-A0 at output stride 8 on CamVid, from scratch.

The paper's kind of segmentor (section 4.3), full dilation; the head has 320 channels.
Command: mmseg-repvgg train configs/camvid/pspnet_repvgg_a0.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = [
    '../_base_/models/pspnet_repvgg.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/camvid.py',
    '../_base_/default_runtime.py',
]

hard_pixels = dict(type='HardPixelSampler', thresh=0.7, min_kept=256 * 320 // 16)
classifier = dict(type='Kaiming', override=dict(name='conv_seg'))
head = dict(num_classes=11, align_corners=False, sampler=hard_pixels, init_cfg=classifier)
model = dict(
    data_preprocessor=dict(size=(256, 320)),
    backbone=dict(arch='A0', dilations=(1, 1, 2, 4)),
    decode_head=dict(in_channels=1280, channels=320, **head),
    auxiliary_head=dict(in_channels=192, channels=48, **head),
    test_cfg=dict(_delete_=True, mode='whole'),
)
del head
