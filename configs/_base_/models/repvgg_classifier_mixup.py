"""The classifier with label smoothing and mixup, for the paper's 200 epochs (section 4.1)."""

_base_ = './repvgg_classifier.py'

model = dict(
    head=dict(
        loss=dict(
            _delete_=True,
            type='LabelSmoothLoss',
            label_smooth_val=0.1,
            mode='original',
            loss_weight=1.0,
        ),
        cal_acc=False,
    ),
    train_cfg=dict(augments=dict(type='Mixup', alpha=0.2)),
)
