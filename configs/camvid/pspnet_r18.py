"""PSPNet on ResNet-18 on CamVid, from scratch.

The model is that of mmseg's config pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py, for 11 classes and without pretrained weights.
Command: mmseg-repvgg train configs/camvid/pspnet_r18.py
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
    .Config.fromfile(
        __import__('mmseg').__path__[0]
        + '/.mim/configs/pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py'
    )
    .model.to_dict()
)
model['data_preprocessor']['size'] = (256, 320)
model['pretrained'] = None
for head in (model['decode_head'], model['auxiliary_head']):
    head['num_classes'] = 11
    # classifiers and hard pixels as in the others
    head['init_cfg'] = dict(type='Kaiming', override=dict(name='conv_seg'))
    head['sampler'] = dict(type='HardPixelSampler', thresh=0.7, min_kept=256 * 320 // 16)
del head
custom_hooks = [dict(type='RepVGGDeployHook', rewrites=('batchnorm',))]
