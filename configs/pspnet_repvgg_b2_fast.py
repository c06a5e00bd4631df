"""PSPNet on RepVGG-B2, only the last 5 layers dilated.

Paper: Table 8, RepVGG-B2-fast (section 4.3).
Command: torchrun --nproc_per_node 8 tools/train.py configs/pspnet_repvgg_b2_fast.py --launcher pytorch
Hardware: 8 GPUs, 2 images each.
Expected, quoted from the paper, not measured here: 79.52 mIoU, 96.36 mean pixel accuracy;
6.9 images/s at 713x713, batch 16, fp32 on a 1080Ti.
Starts from ImageNet weights, as the paper does (docs/cityscapes.md).
"""

_base_ = './pspnet_repvgg_b2.py'

model = dict(backbone=dict(dilations=(1, 1, (1,) * 12 + (2,) * 4, 4)))
