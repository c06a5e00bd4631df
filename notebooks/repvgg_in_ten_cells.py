# ---
# jupyter:
#   jupytext:
#     comment_magics: false
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RepVGG in ten cells
#
# A RepVGG block has three branches while it is trained, and is one 3x3 convolution afterwards. This
# notebook
#
# 1. builds such a block in plain PyTorch, merges its branches, and compares the outputs;
# 2. does the same for a whole backbone with `mmseg_repvgg`;
# 3. computes dilated convolutions by ordinary ones, and times all forms.
#
# It needs `pip install '.[openmmlab]'` in a checkout, takes less than a minute, and needs no GPU.
# Paper: [RepVGG: Making VGG-style ConvNets Great Again](https://arxiv.org/abs/2101.03697).

# %%
# In Colab, remove the # of the next two lines, and give the address of the repository.
# !git clone https://ADDRESS/mmseg_repvgg.git
# !pip install -q './mmseg_repvgg[openmmlab]'

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import mmseg_repvgg.accel  # noqa: F401, adds the rewrite 'winograd'
from mmseg_repvgg.analysis.time_in_turn import paired_ratio, time_in_turn
from mmseg_repvgg.models import DilatedRepVGG
from mmseg_repvgg.reparam import compare, deployed_copy

# %% [markdown]
# ## A block with three branches
#
# Equation 1 of the paper, for equal input and output channels and stride 1: each branch has a
# BatchNorm of its own, and the block adds the three. (The activation comes after the sum, and is
# not changed.)


# %%
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn3, self.bn1, self.bn0 = (nn.BatchNorm2d(channels) for _ in range(3))

    def forward(self, x):
        return self.bn3(self.conv3(x)) + self.bn1(self.conv1(x)) + self.bn0(x)


# %% [markdown]
# A new BatchNorm has mean 0 and variance 1 and changes nothing, so many a wrong formula would pass.
# Random statistics, as after a training, make the comparison strict.


# %%
def randomise_batchnorms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.uniform_(tensor, -0.5, 0.5)
    return model.eval()


generator = torch.manual_seed(0)
block = randomise_batchnorms(Block(4))

# %% [markdown]
# ## Fold a BatchNorm into its convolution
#
# In eval mode a BatchNorm multiplies each channel by a number and adds another (equation 3). The
# convolution can do both: the factor goes into its kernel, the rest is its bias.


# %%
def fold(kernel, bn):
    """(C_out, C_in, h, w) -> the kernel and the bias (C_out,) of conv and BatchNorm together."""
    factor = bn.weight / torch.sqrt(bn.running_var + bn.eps)
    return kernel * factor[:, None, None, None], bn.bias - bn.running_mean * factor


# %% [markdown]
# ## Every branch as a 3x3 kernel
#
# A 1x1 kernel is a 3x3 kernel with zeros around its only tap. The identity is a 1x1 convolution
# whose kernel is the identity matrix.

# %%
one_by_one = F.pad(block.conv1.weight, (1, 1, 1, 1))
identity = F.pad(torch.eye(4)[:, :, None, None], (1, 1, 1, 1))
branches = {
    '3x3': fold(block.conv3.weight, block.bn3),
    '1x1': fold(one_by_one, block.bn1),
    'identity': fold(identity, block.bn0),
}

# %% [markdown]
# ## Add them
#
# Convolution is linear: the sum of three convolutions of the same input is the convolution with the
# sum of the kernels, and the biases add as well (equation 4).

# %%
kernels, biases = zip(*branches.values(), strict=True)
kernel, bias = sum(kernels), sum(biases)

x = torch.randn(2, 4, 32, 32)
with torch.no_grad():
    expected = block(x)
    max_difference = (F.conv2d(x, kernel, bias, padding=1) - expected).abs().max().item()
print(f'largest output {expected.abs().max():.2f}, largest difference {max_difference:.1e}')

# %% [markdown]
# The difference is the rounding of float32. **Would we notice a mistake?** Forget one bias, that of
# the 1x1 branch:

# %%
with torch.no_grad():
    wrong = F.conv2d(x, kernel, bias - branches['1x1'][1], padding=1)
wrong_difference = (wrong - expected).abs().max().item()
print(f'without the bias of the 1x1 branch: largest difference {wrong_difference:.2f}')

# %% [markdown]
# Here are the kernels, one 3x3 square for each pair of an output channel (row) and an input channel
# (column). The 1x1 branch fills only the centres, the identity only the centres of the diagonal.

# %%
pictures = dict(zip(branches, kernels, strict=True), sum=kernel)
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout='constrained')
limit = max(k.abs().max().item() for k in pictures.values())
borders = [2.5, 5.5, 8.5]
for ax, (name, k) in zip(axes, pictures.items(), strict=True):
    tiles = k.detach().permute(0, 2, 1, 3).reshape(12, 12).numpy()
    image = ax.imshow(tiles, cmap='RdBu', vmin=-limit, vmax=limit)
    ax.set(title=name, xticks=borders, yticks=borders)
    ax.tick_params(length=0, labelbottom=False, labelleft=False)
    ax.grid(color='black', linewidth=1)
colorbar = figure.colorbar(image, ax=axes)

# %% [markdown]
# ## The same for a whole backbone
#
# `deployed_copy` merges the branches of every block in a copy, in float64. `compare` runs both on
# the same images. RepVGG-A0 has 22 blocks; with these dilations its features are 1/8 of the image
# in size, as the paper's PSPNets have them.

# %%
backbone = DilatedRepVGG('A0', strides=(2, 2, 1, 1), dilations=(1, 1, 2, 4))
randomise_batchnorms(backbone)
fused, counts = deployed_copy(backbone, ['branches'])

images = torch.randn(1, 3, 256, 384)
difference = compare(backbone, fused, images)
print(counts)
print(difference)

# %% [markdown]
# ## The dilated stages as ordinary convolutions
#
# A convolution of dilation 2 never mixes even and odd rows, nor even and odd columns. So it is four
# ordinary convolutions, each on every second row and column. The rewrite `dilation` does this with
# the stages of dilation 2 and 4.

# %%
with torch.no_grad():
    dilated = F.conv2d(x, kernel, bias, padding=2, dilation=2)
    parts = torch.zeros_like(dilated)
    for i in range(2):
        for j in range(2):
            parts[:, :, i::2, j::2] = F.conv2d(x[:, :, i::2, j::2], kernel, bias, padding=1)
    dilation_difference = (parts - dilated).abs().max().item()
print(f'by hand: largest difference {dilation_difference:.1e}')

undilated, counts = deployed_copy(backbone, ['branches', 'dilation'])
print(counts)
print(compare(backbone, undilated, images))

# %% [markdown]
# ## What it brings
#
# Ordinary 3x3 convolutions can be computed by Winograd's algorithm, which needs fewer
# multiplications; the rewrite `winograd` does so on the CPU. All forms are timed in turn, round by
# round: if the machine slows down meanwhile, all of them become slower. In brackets: 95 %
# confidence intervals. Small images, other CPUs and GPUs give other ratios. The stored times: one
# thread on a virtual machine with two cores of an AMD EPYC, with other programs running.

# %%
winograd, _ = deployed_copy(backbone, ['branches', 'dilation', 'winograd'])
print(compare(backbone, winograd, images))
models = dict(branches=backbone, merged=fused, undilated=undilated, winograd=winograd)
calls = {name: lambda model=model: model(images) for name, model in models.items()}
with torch.no_grad():
    seconds = time_in_turn(calls, repeats=6)
print(f'{torch.get_num_threads()} thread(s)')
for name, times in seconds.items():
    speedup = paired_ratio(seconds['branches'], times)
    print(f'{name:9} {1e3 * np.median(times):5.0f} ms, {speedup} times as fast')

# %% [markdown]
# ## Read on
#
# - [own_data_to_overlay](own_data_to_overlay.ipynb): train, fuse and export on images of your own
# - [docs/rewrites.md](../docs/rewrites.md): each exact rewrite, and when it is applied
# - [docs/benchmarks.md](../docs/benchmarks.md): speeds in PyTorch and three runtimes
# - [block.py](../mmseg_repvgg/models/block.py) and
#   [branches.py](../mmseg_repvgg/reparam/branches.py): the block and how its branches are merged
