"""Checkpoints: reading them safely, finding the weights in them, writing them."""

from mmseg_repvgg.checkpoint.reading import (
    CheckpointError,
    UnsafeCheckpointError,
    read_checkpoint,
    state_dict_of,
)
from mmseg_repvgg.checkpoint.writing import write_checkpoint

__all__ = [
    'CheckpointError',
    'UnsafeCheckpointError',
    'read_checkpoint',
    'state_dict_of',
    'write_checkpoint',
]
