"""RepVGG-B3 on ImageNet, 120 epochs.

Paper: section 4.1, simple augmentation.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/repvgg_b3_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected: the paper prints no accuracy of this model in 120 epochs.
"""

_base_ = [
    '../_base_/models/repvgg_classifier.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_120e.py',
    '../_base_/imagenet_runtime.py',
]

model = dict(backbone=dict(arch='B3'), head=dict(in_channels=2560))
