"""Registration, logging and the deploy hook for classifiers."""

_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
visualizer = dict(
    _delete_=True, type='UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
log_processor = dict(_delete_=True)
tta_model = None
