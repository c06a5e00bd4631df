"""Rare classes count more in the loss, of every pixel.

Source: ENet (Paszke et al. 2016, https://arxiv.org/abs/1606.02147), section 5.1: 1 / ln(1.02 + p)
for a class with the share p of the training pixels; here divided by their mean over the pixels.
Command: mmseg-repvgg train configs/camvid/recipes/class_weights.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

class_weight = [0.8, 0.61, 4.79, 0.48, 2.21, 1.25, 4.5, 4.57, 1.83, 5.43, 6.27]
loss = dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=class_weight)
model = dict(
    decode_head=dict(sampler=None, loss_decode=dict(loss, loss_weight=1.0)),
    auxiliary_head=[
        dict(head, sampler=None, loss_decode=dict(loss, loss_weight=0.4))
        for head in _base_.model.auxiliary_head
    ],
)
