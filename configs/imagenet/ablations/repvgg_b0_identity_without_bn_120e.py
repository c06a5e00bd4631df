"""RepVGG-B0 without BatchNorm in the identity branch; on ImageNet, 120 epochs.

Paper: section 4.2, Table 7, "Identity w/o BN"; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_identity_without_bn_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 74.18.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(block='identity_without_bn'))
