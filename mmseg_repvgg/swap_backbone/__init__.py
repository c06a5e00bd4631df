"""A child config that puts RepVGG into any mmseg config (tools/swap_backbone.py)."""

from mmseg_repvgg.swap_backbone.child import SwapReport, swap_backbone
from mmseg_repvgg.swap_backbone.feature_maps import CannotSwapError

__all__ = ['CannotSwapError', 'SwapReport', 'swap_backbone']
