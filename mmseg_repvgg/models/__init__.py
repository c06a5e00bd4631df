"""Architectures, the block and the backbone."""

from mmseg_repvgg.models.arch import ARCHS, RepVGGArch
from mmseg_repvgg.models.backbone import DilatedRepVGG
from mmseg_repvgg.models.block import RepVGGBlock
from mmseg_repvgg.models.deployed import build_deployed
from mmseg_repvgg.models.variants import VARIANTS

__all__ = ['ARCHS', 'VARIANTS', 'DilatedRepVGG', 'RepVGGArch', 'RepVGGBlock', 'build_deployed']
