"""200 epochs (paper, section 4.1): as for 120 epochs, with 5 epochs of warm-up.

The configs add AutoAugment, label smoothing (0.1) and mixup (0.2, from the paper's reference
[13]).
"""

_base_ = './imagenet_120e.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', by_epoch=True, begin=5, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=200)
