"""QARepVGG-A0 (Chu et al. 2024) with PP-LiteSeg's decoder on CamVid, from scratch.

Command: mmseg-repvgg train configs/camvid/uafm_qarepvgg_a0.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = './uafm_repvgg_a0.py'

model = dict(backbone=dict(block='qa_repvgg'))
