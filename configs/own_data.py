"""A template for your own data: copy it, edit the lines at the top (docs/own-data.md explains them).

Command: mmseg-repvgg check-data own_data.py; mmseg-repvgg train own_data.py
Hardware: one GPU, or a CPU with small crops and few iterations.
Everything below the line follows from the settings, so change them in the file:
``--cfg-options`` sets single keys of the result only.
"""

data_root = 'data/own/'
images, masks = 'images/{split}', 'masks/{split}'  # folders in data_root; {split}: train, val
img_suffix, seg_map_suffix = '.jpg', '.png'  # image a.jpg has the mask a.png
lists = ''  # '{split}.txt': files in data_root with a name per line, without suffix
classes = ('background', 'thing')  # names of the ids 0, 1, ... in the masks
palette = None  # [[R, G, B], ...], a colour per class; None: colours easy to tell apart
ignore_index = 255  # the id of void: not learned, not scored
image_scale = (1024, 576)  # width, height; images are resized to fit into it, before the crop
crop_size = (512, 512)  # height, width of training crops: multiples of 8
batch_size, max_iters = 4, 20000
arch, pretrained = 'A0', None  # of the backbone; ImageNet weights, a path or a URL
sigmoid = False  # True, for two classes: one output channel instead of two
# ------------------------------------------------------------------------------------------------

# found in the package, so that this file may lie anywhere
_base_ = [
    __import__('mmseg_repvgg').config_path('_base_/models/pspnet_repvgg.py'),
    __import__('mmseg_repvgg').config_path('_base_/schedules/semseg_40e.py'),
    __import__('mmseg_repvgg').config_path('_base_/default_runtime.py'),
]

num_classes = len(classes)
if palette is None:
    palette = __import__(
        'mmseg_repvgg.datasets.distinct_colours', fromlist=['distinct_colours']
    ).distinct_colours(num_classes)
widths = __import__('mmseg_repvgg.models.arch', fromlist=['ARCHS']).ARCHS[arch].widths
head = dict(
    num_classes=num_classes,
    out_channels=1 if sigmoid else num_classes,
    threshold=0.5 if sigmoid else None,
    ignore_index=ignore_index,
    align_corners=False,  # True fits sizes of 8 k + 1 only, which whole images rarely have
    loss_decode=dict(use_sigmoid=sigmoid),
)
data_preprocessor = dict(size=crop_size, seg_pad_val=ignore_index)
# sliding windows of the training size, if images are more than twice as large
slide = image_scale[0] > 2 * crop_size[1] or image_scale[1] > 2 * crop_size[0]
model = dict(
    pretrained=pretrained,
    data_preprocessor=data_preprocessor,
    backbone=dict(arch=arch, dilations=(1, 1, 2, 4)),
    # semseg's pyramid: a quarter of the channels of the backbone
    decode_head=dict(in_channels=widths[-1], channels=widths[-1] // 4, **head),
    auxiliary_head=dict(in_channels=widths[-2], channels=widths[-2] // 4, **head),
    test_cfg=dict(
        _delete_=True,
        mode='slide',
        crop_size=crop_size,
        stride=(crop_size[0] * 2 // 3, crop_size[1] * 2 // 3),
    )
    if slide
    else dict(_delete_=True, mode='whole'),
)

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75, ignore_index=ignore_index),
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
        data_prefix=dict(
            img_path=images.format(split=split), seg_map_path=masks.format(split=split)
        ),
        ann_file=lists.format(split=split),
        img_suffix=img_suffix,
        seg_map_suffix=seg_map_suffix,
        metainfo=dict(classes=classes, palette=palette),
        ignore_index=ignore_index,
        pipeline=pipeline,
    )
    for split, pipeline in (('train', train_pipeline), ('val', test_pipeline))
)
train_dataloader = dict(
    batch_size=batch_size,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=train_dataset,
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=val_dataset,
)
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'], ignore_index=ignore_index)
test_evaluator = val_evaluator

# poly 0.9 to the end of the training, after a warm-up over a tenth of it, at most 1000 iterations
warm_up = min(1000, max(1, max_iters // 10))
interval = max(max_iters // 10, min(max_iters, 200))  # of validations and checkpoints
# the paper's rates for ImageNet weights, or docs/recipes.md's from scratch
optim_wrapper = dict(
    optimizer=dict(lr=0.01 if pretrained else 0.1),
    paramwise_cfg=dict(custom_keys={'head': dict(lr_mult=10.0 if pretrained else 1.0)}),
)
auto_scale_lr = dict(base_batch_size=batch_size)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=warm_up),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=warm_up),
]
train_cfg = dict(max_iters=max_iters, val_interval=interval)
default_hooks = dict(
    logger=dict(interval=min(50, max(1, max_iters // 20))),
    checkpoint=dict(interval=interval),
)
del head, slide, widths
