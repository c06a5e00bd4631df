"""RepVGG-B0 with the kernels of DiracNet, diag(a) I + diag(b) W_norm, and no branches; on ImageNet, 120 epochs.

Paper: section 4.2, Table 7, "DiracNet"; the simple training settings of section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/ablations/repvgg_b0_diracnet_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected, quoted from the paper, not measured here: top-1 accuracy 73.97.
"""

_base_ = '../repvgg_b0_120e.py'

model = dict(backbone=dict(block='diracnet'))
# weight decay acts on the kernels of convs only (section 4.1): not on a and b, as in DiracNet's code
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'conv.a': dict(decay_mult=0.0), 'conv.b': dict(decay_mult=0.0)})
)
