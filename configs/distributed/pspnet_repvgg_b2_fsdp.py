"""PSPNet on RepVGG-B2 with fully sharded data parallelism (mmengine's FSDPStrategy).

NOT RUN HERE: it needs GPUs; the tests build runner and strategy settings only.
Command: torchrun --nproc_per_node 8 tools/train.py configs/distributed/pspnet_repvgg_b2_fsdp.py --launcher pytorch
The deploy hook and validation are off, because no process has the whole weights. After training, run
tools/deploy_fuse.py with configs/pspnet_repvgg_b2.py, and tools/test.py.
"""

_base_ = '../pspnet_repvgg_b2.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        use_orig_params=True,  # else paramwise_cfg (the heads' learning rate) finds no names
        auto_wrap_policy=dict(
            type='torch.distributed.fsdp.wrap.size_based_auto_wrap_policy', min_num_params=10**7
        ),
    ),
    state_dict_cfg='full',  # one file, which every tool here reads
)
custom_hooks = []
val_dataloader = None
val_evaluator = None
val_cfg = None
default_hooks = dict(checkpoint=dict(save_best=None))
