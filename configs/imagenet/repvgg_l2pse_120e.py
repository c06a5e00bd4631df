"""RepVGGplus-L2pse on ImageNet, 120 epochs.

Paper: none; the model is the official code's (repvggplus.py). Recipe: section 4.1, simple augmentation.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/repvgg_l2pse_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected: the paper prints no accuracy of this model. The authors' own weights have 84.06 top-1 accuracy at 320x320, quoted
from the official README; they trained at 256x256 for 300 epochs, with auxiliary classifiers.
"""

_base_ = [
    '../_base_/models/repvgg_classifier.py',
    '../_base_/datasets/imagenet_224.py',
    '../_base_/schedules/imagenet_120e.py',
    '../_base_/imagenet_runtime.py',
]

model = dict(backbone=dict(arch='L2pse'), head=dict(in_channels=2560))
