"""PSPNet on RepVGG-A0 with small heads, from scratch, on the built-in demo scenes.

Command: make demo
Hardware: 2 CPU cores, 5 to 8 minutes.
Expected: 0.64 mIoU over the 11 classes that occur, measured (0.6437 in the README, when the
loss still divided by all pixels, void included; results of a run this short vary between versions
and machines: 0.6011 was measured too).

Other data in Cityscapes' layout are resized to 512x256 and evaluated at their own size.
"""

_base_ = [
    './_base_/models/pspnet_repvgg.py',
    './_base_/datasets/demo_scenes.py',
    './_base_/schedules/demo.py',
    './_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=(193, 193)),
    backbone=dict(arch='A0', dilations=(1, 1, 2, 4)),
    decode_head=dict(in_channels=1280, channels=128),
    auxiliary_head=dict(in_channels=192, channels=64),
    test_cfg=dict(_delete_=True, mode='whole'),
)
