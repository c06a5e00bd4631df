"""Crops of the size of an image, 360x480, for as many pixels: 569 iterations instead of 1200.

Command: mmseg-repvgg train configs/camvid/recipes/larger_crops.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

crop_size = (360, 480)
model = dict(data_preprocessor=dict(size=crop_size))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=569, val_interval=569)
