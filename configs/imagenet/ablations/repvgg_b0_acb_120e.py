"""RepVGG-B0 with asymmetric conv blocks: a 3x3, a 1x3 and a 3x1 conv; on ImageNet, 120 epochs.

Paper: section 4.2, Table 7, "ACB"; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_acb_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 73.58.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(block='acb'))
