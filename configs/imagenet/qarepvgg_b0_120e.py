"""QARepVGG-B0 on ImageNet, 120 epochs: RepVGG-B0 with the block made for quantization to 8 bits.

Source: Chu et al. 2024, "Make RepVGG Greater Again: A Quantization-aware Approach"; the simple training settings of
RepVGG's section 4.1.
Command: torchrun --nproc_per_node 8 tools/train.py configs/imagenet/qarepvgg_b0_120e.py --launcher pytorch
Hardware: 8 GPUs, 32 images each.
Expected: 74.78 top-1 accuracy in float32 after 120 epochs, quoted from the log of the authors (B0_log.txt in
github.com/cxxgtxy/QARepVGG), not measured here; they trained with a rate of 0.4 and batches of 1024.
"""

_base_ = './repvgg_b0_120e.py'

model = dict(backbone=dict(block='qa_repvgg'))
