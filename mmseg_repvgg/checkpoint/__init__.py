"""Checkpoints: reading them safely, finding the weights in them, writing them."""

from mmseg_repvgg.checkpoint.errors import CheckpointError, UnsafeCheckpointError
from mmseg_repvgg.checkpoint.reading import read_checkpoint, state_dict_of, write_checkpoint

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'read_checkpoint',
    'state_dict_of',
    'write_checkpoint',
]
