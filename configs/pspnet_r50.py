"""PSPNet on ResNet-50, a baseline of the paper.

Paper: Table 8, ResNet-50 (section 4.3).
Command: torchrun --nproc_per_node 8 tools/train.py configs/pspnet_r50.py --launcher pytorch
Hardware: 8 GPUs, 2 images each.
Expected, quoted from the paper, not measured here: 77.17 mIoU, 95.99 mean pixel accuracy;
10.4 images/s at 713x713, batch 16, fp32 on a 1080Ti, every conv-BN fused.
Starts from ImageNet weights, as the paper does (docs/cityscapes.md).
"""

_base_ = [
    './_base_/models/pspnet_resnet.py',
    './_base_/datasets/cityscapes_713x713.py',
    './_base_/schedules/semseg_40e.py',
    './_base_/default_runtime.py',
]

model = dict(pretrained='open-mmlab://resnet50_v1c', backbone=dict(depth=50))
# the paper tests its baselines with every conv-BN fused
custom_hooks = [
    dict(type='RepVGGDeployHook', rewrites=('batchnorm', 'dilation', 'pyramid', 'winograd'))
]
