"""The moving average of the weights is evaluated and kept, over about 100 iterations.

Source: Polyak and Juditsky 1992; timm's ModelEmaV2 averages BatchNorm statistics too.
Command: mmseg-repvgg train configs/camvid/recipes/ema.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='EMAHook', ema_type='ExponentialMovingAverage', momentum=0.01, update_buffers=True),
]
