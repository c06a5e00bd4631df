"""No weight decay on the BatchNorms and biases of the branches, as in mmpretrain's RepVGG configs.

Source: README of the official code (https://github.com/DingXiaoH/RepVGG).
Command: mmseg-repvgg train configs/camvid/recipes/no_branch_decay.py
Hardware: a CPU.
Expected: mIoU 47.03 %, pixel accuracy 86.58 % of val (seed 0; benchmarks/camvid).
"""

_base_ = '../uafm_repvgg_a0.py'

optim_wrapper = dict(paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0))
