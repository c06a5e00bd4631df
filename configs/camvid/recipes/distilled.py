"""Channel-wise distillation from RepVGG-B0, which train-camvid trains: the teacher comes first.

Source: Shu et al. 2021 (https://arxiv.org/abs/2011.13256), logits, weight 3, temperature 4.
Command: mmseg-repvgg train configs/camvid/recipes/distilled.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(
        type='DistillationHook',
        config=__import__('mmseg_repvgg').config_path('camvid/uafm_repvgg_b0.py'),
        checkpoint='benchmarks/camvid/work/uafm_repvgg_b0_seed0/iter_1200.pth',
    ),
]
