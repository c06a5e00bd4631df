"""QARepVGG-A0 with PP-LiteSeg's decoder: made for quantization to 8 bits.

Source of the block: Chu et al. 2024, arXiv 2212.01593.
Command: torchrun --nproc_per_node 4 tools/train.py configs/realtime/uafm_qarepvgg_a0.py \
    --launcher pytorch
Hardware: 4 GPUs, 4 crops of 1024x1024 each.
Expected: unknown, it was not trained here.
Starts from random weights: ImageNet weights of RepVGG do not fit the block, and none of QARepVGG are published. Those
of configs/imagenet/qarepvgg_b0_120e.py, trained with backbone.arch=A0, fit: --cfg-options model.pretrained=FILE.
"""

_base_ = './uafm_repvgg_a0.py'

model = dict(pretrained=None, backbone=dict(block='qa_repvgg'))
