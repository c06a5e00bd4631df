"""Descriptions of exported models, and places that cannot be written to."""

import errno
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from mmseg_repvgg.atomic_files import atomic_file
from mmseg_repvgg.checkpoint import read_checkpoint
from mmseg_repvgg.checkpoint.writing import convert_weights
from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes
from mmseg_repvgg.deploy.fuse import fuse_checkpoint
from mmseg_repvgg.deploy.model_description import ModelDescription
from tests.wrong_input.table import Given, Table

NOBODY = 65534
"""The user without rights of most systems."""

CASES = Table()

# What is beside an exported model.


def exported(given, text: bytes):
    given.file(text, 'm.onnx.json')
    return ModelDescription.read(given.file(b'x', 'm.onnx'))


AGAIN = ('m.onnx.json is not what mmseg-repvgg export writes', 'export again')
for name, text in [
    ('description cut short', b'{"format":'),
    ('description of something else', json.dumps(dict(format='onnx')).encode()),
    ('list as description', b'[]'),
    ('bytes as description', b'\xff\xfe\x00'),
]:
    CASES.add(name, lambda g, text=text: exported(g, text), ValueError, *AGAIN)
CASES.add('no description', lambda g: ModelDescription.read(g.file(b'x', 'm.onnx')),
          FileNotFoundError, 'm.onnx.json not found', 'keep them together')  # fmt: skip

# Places that cannot be written to.


def write(path: Path, error: OSError | None = None):
    def refuse(*_):
        raise error

    with pytest.MonkeyPatch.context() as patch:
        if error is not None:
            patch.setattr(os, 'replace', refuse)
        with atomic_file(path) as temporary:
            temporary.write_text('x')


NOT_WRITTEN = ('was not written', 'a folder you may write to, with enough free space')
for name, call, error, parts in [
    ('no permission', lambda g: write(g.folder / 'a', PermissionError(errno.EACCES, 'denied')),
     PermissionError, ('a was not written: denied', *NOT_WRITTEN)),
    ('disk full', lambda g: write(g.folder / 'a', OSError(errno.ENOSPC, 'No space left on device')),
     OSError, ('No space left on device', *NOT_WRITTEN)),
    ('a file instead of the folder', lambda g: write(g.file(b'', 'f') / 'a'),
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


@contextmanager
def without_permission(given: Given) -> Iterator[Given]:
    """A folder with a checkpoint in it, in which nothing may be written any more.

    Permissions do not apply to root, as whom the tests may run: then somebody else does it.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, is_root = Path(name), os.geteuid() == 0
        there = replace(given, folder=folder)
        there.saved(given.state)
        there.saved({}, 'secret.pth').chmod(0o000)
        folder.chmod(0o555)
        try:
            if is_root:
                os.seteuid(NOBODY)
            yield there
        finally:
            if is_root:
                os.seteuid(0)
            folder.chmod(0o755)


def denied(call: Callable[[Given], object]) -> Callable[[Given], None]:
    def run(given: Given) -> None:
        with without_permission(given) as there:
            call(there)

    return run


MAY_WRITE = 'that you may write there'
for name, call, parts in [
    ('fused checkpoint where nothing may be written',
     lambda g: fuse_checkpoint(g.cfg, g.folder / 'x.pth', g.folder / 'f.pth', num_images=0),
     ('f.pth was not written: Permission denied', *NOT_WRITTEN)),
    ('folder of a fused checkpoint where nothing may be written',
     lambda g: fuse_checkpoint(g.cfg, g.folder / 'x.pth', g.folder / 'd' / 'f.pth', num_images=0),
     ('the folder', 'cannot be made: Permission denied', MAY_WRITE)),
    ('weights where nothing may be written',
     lambda g: convert_weights(g.folder / 'x.pth', g.folder / 'o.pth', 'timm'),
     ('o.pth was not written: Permission denied', *NOT_WRITTEN)),
    ('scenes where nothing may be written', lambda g: make_demo_scenes(g.folder / 'd', 1, 1),
     ('cannot be made: Permission denied', MAY_WRITE)),
    ('checkpoint that may not be read', lambda g: read_checkpoint(g.folder / 'secret.pth'),
     ('secret.pth cannot be read: Permission denied', 'Check that you may read it')),
]:  # fmt: skip
    CASES.add(name, denied(call), PermissionError, *parts)
