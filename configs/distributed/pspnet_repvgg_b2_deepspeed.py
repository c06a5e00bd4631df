"""PSPNet on RepVGG-B2 with DeepSpeed, its optimizer states sharded (ZeRO stage 1).

NOT RUN HERE: it needs GPUs and deepspeed, which is not installed with this package; the tests
only read the config and build the model.
Command: torchrun --nproc_per_node 8 tools/train.py configs/distributed/pspnet_repvgg_b2_deepspeed.py --launcher pytorch
With stage 1 every process has the whole weights, so the deploy hook works; with stage 3 remove it
from custom_hooks, as in pspnet_repvgg_b2_fsdp.py.
DeepSpeed's checkpoints are folders. The weights are in <folder>/mp_rank_00_model_states.pt.
"""

_base_ = '../pspnet_repvgg_b2.py'

runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    zero_optimization=dict(stage=1, overlap_comm=True, contiguous_gradients=True),
)
optim_wrapper = dict(type='DeepSpeedOptimWrapper')
default_hooks = dict(checkpoint=dict(save_best=None))
