"""STDC1-Seg on CamVid, from scratch.

The model is that of mmseg's config _base_/models/stdc.py, for 11 classes and without pretrained weights.
Command: mmseg-repvgg train configs/camvid/stdc1.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = [
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/camvid.py',
    '../_base_/default_runtime.py',
]

model = (
    __import__('mmengine')
    .Config.fromfile(__import__('mmseg').__path__[0] + '/.mim/configs/_base_/models/stdc.py')
    .model.to_dict()
)
model['data_preprocessor']['size'] = (256, 320)
for head in (model['decode_head'], *model['auxiliary_head'][:2]):  # the last finds edges
    head['num_classes'] = 11
    head['init_cfg'] = dict(type='Kaiming', override=dict(name='conv_seg'))
    head['sampler'] = dict(type='HardPixelSampler', thresh=0.7, min_kept=256 * 320 // 16)
del head
custom_hooks = [dict(type='RepVGGDeployHook', rewrites=('batchnorm',))]
