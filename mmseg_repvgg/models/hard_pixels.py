"""HardPixelSampler: mmseg's OHEM with the mean over the pixels that are learned, not over all."""

from __future__ import annotations

import torch
from mmseg.registry import TASK_UTILS
from mmseg.structures import OHEMPixelSampler
from torch import Tensor


@TASK_UTILS.register_module()
class HardPixelSampler(OHEMPixelSampler):
    """Learn hard pixels only, and average the loss over them (OHEM, Shrivastava et al. 2016).

    The losses of mmseg divide by the number of all pixels, also of those that its
    ``OHEMPixelSampler`` leaves out. So the gradient fades as pixels become easy, and an optimizer
    that divides by the mean square of past gradients, such as Adam, then takes small steps.
    The authors of PIDNet, DDRNet and PP-LiteSeg divide by the number of hard pixels, as this does.

    Args:
        context: The decode head; mmseg gives it.
        thresh: A pixel is hard if the probability of its class is lower. By default those of the
            ``min_kept`` largest losses are.
        min_kept: At least so many pixels of each image of the batch are learned, on average.
    """

    def sample(self, seg_logit: Tensor, seg_label: Tensor) -> Tensor:
        """Logits (N, C, H, W), labels (N, 1, H, W) -> weights (N, H, W) with a mean of 1."""
        weights = super().sample(seg_logit, seg_label)
        # a sum in float16 overflows
        count = weights.sum(dtype=torch.float32).clamp(min=1)
        return weights * (weights.numel() / count)
