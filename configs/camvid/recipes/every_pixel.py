"""Cross entropy of every pixel, instead of those that the network is not yet sure about.

Command: mmseg-repvgg train configs/camvid/recipes/every_pixel.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

model = dict(
    decode_head=dict(sampler=None),
    auxiliary_head=[dict(head, sampler=None) for head in _base_.model.auxiliary_head],
)
