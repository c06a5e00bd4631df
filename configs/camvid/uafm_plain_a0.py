"""The plain 3x3 network of RepVGG-A0's fused form with PP-LiteSeg's decoder on CamVid, from scratch.

Table 6 asks what the branches are worth; fused, both are the same network.
Command: mmseg-repvgg train configs/camvid/uafm_plain_a0.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = './uafm_repvgg_a0.py'

model = dict(backbone=dict(branches=('3x3',)))
