"""RepVGG-B0 with both branches, the block of all other configs; on ImageNet, 120 epochs.

Paper: section 4.2, Table 6, 4th row, and Table 7, "Full-featured reparam"; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_3x3_1x1_identity_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 75.14; 1061 examples/s in training form on a
1080Ti.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(branches=('3x3', '1x1', 'identity')))
