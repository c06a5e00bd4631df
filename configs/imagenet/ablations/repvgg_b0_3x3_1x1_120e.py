"""RepVGG-B0 with the 1x1 branch and without the identity branch; on ImageNet, 120 epochs.

Paper: section 4.2, Table 6, 3rd row; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_3x3_1x1_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 73.15; 1230 examples/s in training form on a
1080Ti.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(branches=('3x3', '1x1')))
