"""Three times as long: 3600 iterations.

Command: mmseg-repvgg train configs/camvid/recipes/longer.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = '../uafm_repvgg_a0.py'

train_cfg = dict(max_iters=3600)
