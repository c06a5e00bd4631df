"""Registration, logging, the deploy hook and test-time augmentation, common to all configs."""

# mmpretrain has the Gaussian blur of the training pipelines
custom_imports = dict(
    imports=['mmseg_repvgg', 'mmpretrain.datasets.transforms'], allow_failed_imports=False
)
default_scope = 'mmseg'
custom_hooks = [dict(type='RepVGGDeployHook')]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
tta_model = dict(type='SegTTAModel')
