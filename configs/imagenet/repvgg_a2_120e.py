"""RepVGG-A2 on ImageNet, 120 epochs.

Paper: section 4.1, simple augmentation.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/repvgg_a2_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper (Table 4), not measured here: top-1 accuracy 76.48.
"""

_base_ = [
    '../_base_/models/repvgg_classifier.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_120e.py',
    '../_base_/imagenet_runtime.py',
]

model = dict(backbone=dict(arch='A2'), head=dict(in_channels=1408))
