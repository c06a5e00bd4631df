"""Structural re-parameterization: exact rewrites of tensors and modules, and their checks."""

from mmseg_repvgg.reparam.equivalence import Difference, EquivalenceError, compare
from mmseg_repvgg.reparam.rewrites import REWRITES, apply_rewrites, deployed_copy

__all__ = [
    'REWRITES',
    'Difference',
    'EquivalenceError',
    'apply_rewrites',
    'compare',
    'deployed_copy',
]
