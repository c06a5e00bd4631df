"""Checkpoints: files are read, weights recognised by name, loaded into a model, and written.

::

    weights = state_dict_of(read_checkpoint('a.pth'))  # reading.py, torch_file.py, allowed_names.py
    print(identify(weights))  # names.py
    load_strictly(model, weights, 'a.pth')  # loading.py
    write_checkpoint({'state_dict': model.state_dict()}, 'b.pth')  # writing.py
"""

from mmseg_repvgg.checkpoint.loading import load_backbone, load_strictly
from mmseg_repvgg.checkpoint.names import identify
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
    'identify',
    'load_backbone',
    'load_strictly',
    'read_checkpoint',
    'state_dict_of',
    'write_checkpoint',
]
