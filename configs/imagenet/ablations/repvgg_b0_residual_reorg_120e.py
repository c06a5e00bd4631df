"""The layers of RepVGG-B0 with the shortcuts of ResNet-34, which cannot be fused; on ImageNet, 120 epochs.

Paper: section 4.2, Table 7, "Residual Reorg"; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_residual_reorg_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 74.56.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(block='residual_reorg'))
# the block has no fused form: only each conv and its BatchNorm are fused
custom_hooks = [dict(type='RepVGGDeployHook', rewrites=('batchnorm',))]
