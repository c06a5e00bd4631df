"""PSPNet on RepVGG-B1g2, every layer of the last two stages dilated.

Paper: Table 8, RepVGG-B1g2 (section 4.3).
Command: torchrun --nproc_per_node 8 tools/train.py configs/pspnet_repvgg_b1g2.py --launcher pytorch
Hardware: 8 GPUs, 2 images each.
Expected, quoted from the paper, not measured here: 78.70 mIoU, 96.27 mean pixel accuracy;
8.0 images/s at 713x713, batch 16, fp32 on a 1080Ti.
Starts from ImageNet weights, as the paper does (docs/cityscapes.md).
"""

_base_ = [
    './_base_/models/pspnet_repvgg.py',
    './_base_/datasets/cityscapes_713x713.py',
    './_base_/schedules/semseg_40e.py',
    './_base_/default_runtime.py',
]

model = dict(
    pretrained='https://download.openmmlab.com/mmclassification/v0/repvgg/repvgg-B1g2_8xb32_in1k_20221213-ae6428fd.pth',
    backbone=dict(arch='B1g2', dilations=(1, 1, 2, 4)),
    decode_head=dict(in_channels=2048),
    auxiliary_head=dict(in_channels=512),
)
