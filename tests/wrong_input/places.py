"""Descriptions of exported models, and places that cannot be written to."""

import errno
import json
import os
from pathlib import Path

import pytest

from mmseg_repvgg.checkpoint.convert import convert_weights
from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes
from mmseg_repvgg.deploy.exported import ExportedInfo
from mmseg_repvgg.files import whole_file
from tests.wrong_input.table import Table

CASES = Table()

# What is beside an exported model.


def exported(given, text: bytes):
    given.file(text, 'm.onnx.json')
    return ExportedInfo.read(given.file(b'x', 'm.onnx'))


AGAIN = ('m.onnx.json is not what tools/export.py writes', 'export again')
for name, text in [
    ('description cut short', b'{"format":'),
    ('description of something else', json.dumps(dict(format='onnx')).encode()),
    ('list as description', b'[]'),
    ('bytes as description', b'\xff\xfe\x00'),
]:
    CASES.add(name, lambda g, text=text: exported(g, text), ValueError, *AGAIN)
CASES.add('no description', lambda g: ExportedInfo.read(g.file(b'x', 'm.onnx')), FileNotFoundError,
          'm.onnx.json not found', 'keep them together')  # fmt: skip

# Places that cannot be written to. The tests may run as root, to whom permissions do not apply.


def write(path: Path, error: OSError | None = None):
    def refuse(*_):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        if error is not None:
            patch.setattr(os, 'replace', refuse)
        with whole_file(path) as temporary:
            temporary.write_text('x')


NOT_WRITTEN = ('was not written', 'a folder you may write to, with enough free space')
for name, call, error, parts in [
    ('no permission', lambda g: write(g.folder / 'a', PermissionError(errno.EACCES, 'denied')),
     PermissionError, ('a was not written: denied', *NOT_WRITTEN)),
    ('disk full', lambda g: write(g.folder / 'a', OSError(errno.ENOSPC, 'No space left on device')),
     OSError, ('No space left on device', *NOT_WRITTEN)),
    ('a file in the place of the folder', lambda g: write(g.file(b'', 'f') / 'a'),
     NotADirectoryError, NOT_WRITTEN),
    ('fused checkpoint below a file', lambda g: (g.file(b'', 'f'), g.fuse(out='f/o.pth')),
     FileExistsError, ('the folder', 'cannot be made', 'nothing on its path is a file')),
    ('scenes below a file', lambda g: make_demo_scenes(g.file(b'', 'f') / 'd', 1, 1),
     NotADirectoryError, ('cannot be made', 'nothing on its path is a file')),
    ('weights in no folder',
     lambda g: convert_weights(g.saved(g.state), g.folder / 'no' / 'o.safetensors', 'timm'),
     FileNotFoundError, ('o.safetensors was not written', 'free space')),
]:  # fmt: skip
    CASES.add(name, call, error, *parts)
