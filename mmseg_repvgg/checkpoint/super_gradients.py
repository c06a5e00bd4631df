"""What the blocks of super-gradients hold more than RepVGG's and QARepVGG's, folded away exactly.

Facts of super-gradients 3.7 (``modules/repvgg_block.py``, ``modules/qarepvgg_block.py``):

* ``alpha``, with ``use_alpha=True``: a learned factor of the 1x1 branch.
* ``branch_1x1.bias`` of ``QARepVGGBlock``. It comes before the BatchNorm ``post_bn``, which removes
  it in training, and in inference acts as a shift of the mean.
* ``rbr_reparam`` of ``QARepVGGBlock``: in training form a placeholder without meaning.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

BRANCH = 'branch_3x3.conv.weight'


def without_extras(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fold the extras of every block into tensors that RepVGG's and QARepVGG's blocks have.

    Args:
        state: Weights in the names of super-gradients.

    Returns:
        The same function with fewer tensors; without extras the same tensors. The bias of a block
        without ``post_bn`` stays: no block here has it, so loading it is refused.
    """
    result = dict(state)
    blocks = [name.removesuffix(BRANCH) for name in state if f'.{name}'.endswith(f'.{BRANCH}')]
    for block in blocks:
        for name in ('weight', 'bias'):
            result.pop(f'{block}rbr_reparam.{name}', None)
        alpha = result.pop(f'{block}alpha', None)
        if alpha is not None:
            has_norm = f'{block}branch_1x1.bn.weight' in result
            for name in ('weight', 'bias'):
                scaled = f'{block}branch_1x1.{"bn." if has_norm else ""}{name}'
                if scaled in result:
                    result[scaled] = result[scaled] * alpha.to(result[scaled])
        mean = f'{block}post_bn.running_mean'
        if mean in result and f'{block}branch_1x1.bias' in result:
            bias = result.pop(f'{block}branch_1x1.bias')
            exact = torch.promote_types(result[mean].dtype, torch.float64)
            shifted = result[mean].to(exact) - bias.to(exact)
            result[mean] = shifted.to(result[mean].dtype)
    return result
