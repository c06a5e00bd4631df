"""Online hard example mining: only pixels that the network is not yet sure about are learned.

Source: Shrivastava et al. 2016 (https://arxiv.org/abs/1604.03540), mmseg's OHEMPixelSampler.
Command: mmseg-repvgg train configs/camvid/recipes/ohem.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

# at least a tenth of the pixels of a batch
sampler = dict(type='OHEMPixelSampler', thresh=0.7, min_kept=256 * 320 // 10)
model = dict(decode_head=dict(sampler=sampler), auxiliary_head=dict(sampler=sampler))
