"""Optional CPU speed-ups, chosen by name like the rewrites of :mod:`mmseg_repvgg.reparam`.

Each changes the classes of modules of a model; parameter names stay.
"""

from mmseg_repvgg.accel.winograd import use_winograd
from mmseg_repvgg.reparam.rewrites import REWRITES, Rewrite

REWRITES['winograd'] = Rewrite(use_winograd, '3x3 convs by Winograd', ('cpu',), if_compared=True)

__all__ = ['use_winograd']
