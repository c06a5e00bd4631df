"""PSPNet with a ResNet backbone, the paper's baseline (section 4.3).

Everything but the backbone and the channels is as in ``pspnet_repvgg.py``. All 3x3 convs of the
last two stages are dilated, by 2 and by 4, as in semseg (so no ``contract_dilation``).
"""

_base_ = './pspnet_repvgg.py'

norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNetV1c',
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        strides=(1, 2, 1, 1),
        dilations=(1, 1, 2, 4),
        norm_cfg=norm_cfg,
        norm_eval=False,
        style='pytorch',
        contract_dilation=False,
    ),
    decode_head=dict(in_channels=2048),
    auxiliary_head=dict(in_channels=1024),
)
