"""mmpretrain's RepVGG-A0 with PP-LiteSeg's decoder on CamVid, from scratch.

The same network as uafm_repvgg_a0.py by another implementation: equal but for chance.
Command: mmseg-repvgg train configs/camvid/uafm_mmpretrain_a0.py
Hardware: a CPU.
Expected: unknown, it was not trained here.
"""

_base_ = './uafm_repvgg_a0.py'

custom_imports = dict(
    imports=['mmseg_repvgg', 'mmpretrain.datasets.transforms', 'mmpretrain.models.backbones'],
    allow_failed_imports=False,
)
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmpretrain.RepVGG',
        arch='A0',
        out_indices=(1, 2, 3),
        norm_cfg=dict(type='SyncBN', requires_grad=True),
    )
)
