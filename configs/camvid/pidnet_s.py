"""PIDNet-S on CamVid, from scratch.

The model is that of mmseg's config pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py, for 11 classes and without pretrained weights, weights of classes.
Command: mmseg-repvgg train configs/camvid/pidnet_s.py
Hardware: a CPU.
Expected: mIoU 51.12 %, pixel accuracy 87.29 % of val (seed 0; benchmarks/camvid).
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
        + '/.mim/configs/pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py'
    )
    .model.to_dict()
)
model['data_preprocessor']['size'] = (256, 320)
model['backbone']['init_cfg'] = None
model['decode_head']['num_classes'] = 11
for loss in model['decode_head']['loss_decode']:
    if 'class_weight' in loss:  # no weights of Cityscapes' classes
        loss['class_weight'] = None
    if 'min_kept' in loss:  # hard pixels: the same share of the batch as there, 2 %
        loss['min_kept'] = 13653
del loss
custom_hooks = [dict(type='RepVGGDeployHook', rewrites=('batchnorm',))]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(256, 320), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='GenerateEdge', edge_width=4),  # for its boundary loss; the rest is as for all
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
