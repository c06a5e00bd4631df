"""Cross entropy of every pixel and the Lovasz-Softmax loss, which follows the IoU.

Source: Berman et al. 2018 (https://arxiv.org/abs/1705.08790), mmseg's LovaszLoss.
Command: mmseg-repvgg train configs/camvid/recipes/lovasz.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

model = dict(
    decode_head=dict(
        sampler=None,
        loss_decode=[
            dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            dict(type='LovaszLoss', reduction='none', loss_weight=1.0),
        ],
    ),
    auxiliary_head=[dict(head, sampler=None) for head in _base_.model.auxiliary_head],
)
