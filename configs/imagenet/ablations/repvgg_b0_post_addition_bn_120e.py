"""RepVGG-B0 with one BatchNorm after the addition instead of those in the branches; on ImageNet, 120 epochs.

Paper: section 4.2, Table 7, "Post-addition BN"; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_post_addition_bn_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 73.52.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(block='post_addition_bn'))
