"""RepVGG-B3g2 on ImageNet, 200 epochs.

Paper: section 4.1, with AutoAugment, label smoothing and mixup.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/repvgg_b3g2_200e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected: the paper prints no accuracy of this model in 200 epochs.
"""

_base_ = [
    '../_base_/models/repvgg_classifier_mixup.py',
    '../_base_/datasets/imagenet_224_autoaugment.py',
    '../_base_/schedules/imagenet_200e.py',
    '../_base_/imagenet_runtime.py',
]

model = dict(backbone=dict(arch='B3g2'), head=dict(in_channels=2560))
