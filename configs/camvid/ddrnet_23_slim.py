"""DDRNet-23-slim on CamVid, from scratch.

The model is that of mmseg's config ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py, for 11 classes and without pretrained weights, weights of classes.
Command: mmseg-repvgg train configs/camvid/ddrnet_23_slim.py
Hardware: a CPU.
Expected: mIoU 50.30 %, pixel accuracy 87.43 % of val (seed 0; benchmarks/camvid).
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
        + '/.mim/configs/ddrnet/ddrnet_23-slim_in1k-pre_2xb6-120k_cityscapes-1024x1024.py'
    )
    .model.to_dict()
)
model['data_preprocessor']['size'] = (256, 320)
model['backbone']['init_cfg'] = None
model['decode_head']['num_classes'] = 11
for loss in model['decode_head']['loss_decode']:
    # hard pixels: the same share of the batch as there, 2 %; no weights of Cityscapes' classes
    loss.update(min_kept=13653, class_weight=None)
del loss
custom_hooks = [dict(type='RepVGGDeployHook', rewrites=('batchnorm',))]
