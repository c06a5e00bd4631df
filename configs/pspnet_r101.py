"""PSPNet on ResNet-101, a baseline of the paper.

Paper: Table 8, ResNet-101 (section 4.3).
Command: torchrun --nproc_per_node 8 tools/train.py configs/pspnet_r101.py --launcher pytorch
Hardware: 8 GPUs, 2 images each.
Expected, quoted from the paper, not measured here: 78.51 mIoU, 96.30 mean pixel accuracy;
6.7 images/s at 713x713, batch 16, fp32 on a 1080Ti, every conv-BN fused.
Starts from ImageNet weights, as the paper does (docs/cityscapes.md).
"""

_base_ = './pspnet_r50.py'

model = dict(pretrained='open-mmlab://resnet101_v1c', backbone=dict(depth=101))
