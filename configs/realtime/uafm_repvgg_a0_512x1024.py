"""RepVGG-A0 with PP-LiteSeg's decoder, trained on crops of 512x1024 (height, width), as PP-LiteSeg is.

Command: torchrun --nproc_per_node 4 tools/train.py configs/realtime/uafm_repvgg_a0_512x1024.py \
    --launcher pytorch
Hardware: 4 GPUs, 4 crops each: half the memory of crops of 1024x1024.
Expected: unknown, it was not trained here.
Starts from ImageNet weights, as uafm_repvgg_a0.py does.
"""

_base_ = './uafm_repvgg_a0.py'

crop_size = (512, 1024)
head = dict(sampler=dict(type='HardPixelSampler', thresh=0.7, min_kept=512 * 1024 // 16))
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=head,
    auxiliary_head=[{**auxiliary, **head} for auxiliary in _base_.model.auxiliary_head],
)
del head
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
