"""PSPNet on RepVGG-B1g2, only the last 5 layers dilated.

Paper: Table 8, RepVGG-B1g2-fast (section 4.3).
Command: torchrun --nproc_per_node 8 tools/train.py configs/pspnet_repvgg_b1g2_fast.py --launcher pytorch
Hardware: 8 GPUs, 2 images each.
Expected, quoted from the paper, not measured here: 78.88 mIoU, 96.19 mean pixel accuracy;
10.9 images/s at 713x713, batch 16, fp32 on a 1080Ti.
Starts from ImageNet weights, as the paper does (docs/cityscapes.md).
"""

_base_ = './pspnet_repvgg_b1g2.py'

model = dict(backbone=dict(dilations=(1, 1, (1,) * 12 + (2,) * 4, 4)))
