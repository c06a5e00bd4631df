"""Safe reading, finding the weights, writing."""

import gzip
import io
import lzma
import os
import resource
import tarfile
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from mmseg_repvgg.checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    read_checkpoint,
    state_dict_of,
    torch_file,
    write_checkpoint,
)
from mmseg_repvgg.checkpoint.reading import passed_over
from tests.checkpoint import payloads

WEIGHTS = {'weight': torch.arange(6.0).reshape(2, 3), 'bias': torch.ones(2)}


# Damaged files, and files of another kind.


def content_of(checkpoint, **kwargs):
    with tempfile.TemporaryFile() as stream:
        torch.save(checkpoint, stream, **kwargs)
        stream.seek(0)
        return stream.read()


def zip_of(*names):
    with tempfile.TemporaryFile() as stream:
        with zipfile.ZipFile(stream, 'w') as archive:
            for name in names:
                archive.writestr(name, 'x')
        stream.seek(0)
        return stream.read()


def tar_of(content):
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode='w') as archive:
            info = tarfile.TarInfo('x.pth')
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        return stream.getvalue()


ZIPPED = content_of(WEIGHTS)
LEGACY = content_of(WEIGHTS, _use_new_zipfile_serialization=False)
OTHER_FILES = {
    'empty': (b'', 'an empty file'),
    'text': (b'Permission denied\n', "text, beginning 'Permission denied"),
    'page': (b'\n<!DOCTYPE html><html>404</html>', 'a web page.*download'),
    'error': (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', 'a web page'),
    'lfs': (b'version https://git-lfs.github.com/spec/v1\noid sha256:1\n', 'git lfs pull'),
    'cut zip': (ZIPPED[: len(ZIPPED) // 2], f'cut short after {len(ZIPPED) // 2} bytes'),
    'cut legacy': (LEGACY[: len(LEGACY) // 2], 'cannot be read.*Delete it'),
    'legacy, tensors cut': (LEGACY[:-8], 'cannot be read.*Delete it'),
    'head of legacy': (LEGACY[:16], 'cannot be read'),
    'other zip': (zip_of('word/document.xml', 'a.png'), r'something else \(document.xml, a.png\)'),
    'torchscript': (zip_of('m/data.pkl', 'm/constants.pkl'), 'a TorchScript program'),
    'zip of rubbish': (zip_of('m/data.pkl', 'm/version'), 'cannot be read'),
    'image': (b'\x89PNG\r\n\x1a\n' + bytes(64), 'cannot be read'),
    'zeros': (bytes(4096), 'cannot be read'),
    'cut safetensors': (b'\x40' + bytes(7) + b'{"a":' + b' ' * 80, 'cannot be read'),
    'gzip': (gzip.compress(ZIPPED), 'is a gzip file.*Unpack it'),
    'xz': (lzma.compress(ZIPPED), 'is a xz file.*Unpack it'),
    'tar': (tar_of(ZIPPED), 'is a tar file.*Unpack it'),
    'a tensor': (content_of(torch.ones(2)), 'one object of type Tensor'),
}


@pytest.mark.parametrize('kind', OTHER_FILES)
def test_each_wrong_file_is_explained(tmp_path, kind):
    content, expected = OTHER_FILES[kind]
    file = tmp_path / 'x.pth'
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=expected) as error:
        read_checkpoint(file)
    assert str(file) in str(error.value)
    assert 'weights_only=False' not in str(error.value)
    assert not isinstance(error.value, UnsafeCheckpointError)


@pytest.mark.parametrize('content', [ZIPPED, LEGACY], ids=['zip', 'legacy'])
def test_the_whole_files_are_fine(tmp_path, content):
    """Control for the damaged ones."""
    (tmp_path / 'x.pth').write_bytes(content)
    read = read_checkpoint(str(tmp_path / 'x.pth'))
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in read)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
def test_no_damage_escapes_as_another_error(tmp_path):
    """Bytes of the pickle flipped one after the other: read, or a CheckpointError."""
    file, failed = tmp_path / 'x.pth', 0
    for position in range(0, 200, 3):
        content = bytearray(LEGACY)
        content[position] ^= 0xA5
        file.write_bytes(content)
        try:
            read_checkpoint(file)
        except CheckpointError:
            failed += 1
    assert failed > 40


def test_folder_and_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match='is a folder'):
        read_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r'none\.pth does not exist'):
        read_checkpoint(tmp_path / 'none.pth')
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'none.pth')
    with pytest.raises(FileNotFoundError, match=r'link\.pth does not exist'):
        read_checkpoint(tmp_path / 'link.pth')
    with pytest.raises(FileNotFoundError, match='the path of the checkpoint is empty'):
        read_checkpoint('')


def test_pipes_and_devices_are_not_opened(tmp_path):
    """Opening a pipe that nobody writes to waits for ever."""
    os.mkfifo(tmp_path / 'x.pth')
    for file in (tmp_path / 'x.pth', Path('/dev/zero')):
        with pytest.raises(CheckpointError, match='is a pipe or a device'):
            read_checkpoint(file)


@pytest.mark.parametrize('name', ['a b.pth', 'ä 日本.pth', 'C:\\a.pth', 'a%20b#?.pth', "it's.pth"])
@pytest.mark.parametrize('linked', [False, True])
def test_names_of_every_kind(tmp_path, name, linked):
    file = tmp_path / name
    target = tmp_path / 'target.pth' if linked else file
    torch.save(WEIGHTS, target)
    if linked:
        file.symlink_to(target)
    assert read_checkpoint(file).keys() == WEIGHTS.keys()


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_file_cut_short_while_it_is_read(tmp_path, monkeypatch, zipped):
    file = tmp_path / 'x.pth'
    weights = {name: torch.ones(100_000) for name in 'ab'}
    torch.save(weights, file, _use_new_zipfile_serialization=zipped)
    parse = torch_file._parse_pid

    def cut_and_parse(*args):
        os.truncate(file, 50_000)
        return parse(*args)

    monkeypatch.setattr(torch_file, '_parse_pid', cut_and_parse)
    with pytest.raises(CheckpointError, match=r'x\.pth cannot be read, it is not complete'):
        read_checkpoint(file)


@pytest.mark.parametrize('name', ['x.safetensors', 'named_wrongly.pth'])
def test_safetensors(tmp_path, name):
    from safetensors.torch import save_file

    save_file(WEIGHTS, tmp_path / name)
    for place in ('cpu', None, torch.device('cpu')):
        read = read_checkpoint(tmp_path / name, place)
        assert all(torch.equal(read[key], WEIGHTS[key]) for key in WEIGHTS)
    with pytest.raises(CheckpointError, match='map_location'):
        read_checkpoint(tmp_path / name, {'cuda:0': 'cpu'})


def test_map_location(tmp_path):
    torch.save(WEIGHTS, tmp_path / 'x.pth')
    assert read_checkpoint(tmp_path / 'x.pth', 'meta')['bias'].is_meta
    assert not read_checkpoint(tmp_path / 'x.pth')['bias'].is_meta


@pytest.mark.skipif(torch.cuda.is_available(), reason='the file can be read as it is')
def test_a_device_this_machine_does_not_have(tmp_path):
    file = tmp_path / 'x.pth'
    torch.save(WEIGHTS, file)
    payloads.edit_pickle(file, b'X\x03\0\0\0cpu', b'X\x06\0\0\0cuda:0')
    with pytest.raises(CheckpointError, match=r"CUDA.*Use map_location='cpu'") as error:
        read_checkpoint(file, None)
    assert 'Delete' not in str(error.value)
    assert torch.equal(read_checkpoint(file)['bias'], WEIGHTS['bias'])


# Finding the weights.


@pytest.mark.parametrize(
    'key', ['state_dict', 'model', 'ema', 'model_state_dict', 'module', 'params']
)
def test_state_dict_is_unwrapped(key):
    found = state_dict_of({key: {**WEIGHTS, '_extra': 3}, 'epoch': 7, 'optimizer': {'state': {}}})
    assert found == WEIGHTS


def test_state_dict_of_other_forms():
    assert state_dict_of(WEIGHTS) == WEIGHTS
    assert state_dict_of({'model': {'state_dict': WEIGHTS}}) == WEIGHTS
    wrapped = {f'module.{name}': value for name, value in WEIGHTS.items()}
    assert state_dict_of({'state_dict': wrapped}) == WEIGHTS
    one_only = {'module.weight': WEIGHTS['weight'], 'bias': WEIGHTS['bias']}
    assert state_dict_of(one_only) == one_only
    # A tensor named like a wrapper is a tensor.
    named = {'model': torch.ones(1), 'bias': torch.ones(1)}
    assert state_dict_of(named) == named


@pytest.mark.parametrize('empty', [{}, {'epoch': 3, 'lr': 0.1}, {'state_dict': {}}])
def test_no_weights(empty):
    with pytest.raises(CheckpointError, match='no weights found: the checkpoint has the keys'):
        state_dict_of(empty)


def test_weights_that_are_passed_over_are_named():
    averaged = {name: value + 1 for name, value in WEIGHTS.items()}
    both = dict(state_dict_ema=averaged, state_dict=WEIGHTS, epoch=3, model=dict(depth=50))
    assert state_dict_of(both) == WEIGHTS
    note = "; these are the weights under 'state_dict', the file also has 'state_dict_ema'"
    assert passed_over(both) == note
    for one in (WEIGHTS, dict(model=WEIGHTS), dict(state_dict=WEIGHTS, model=dict(depth=50))):
        assert passed_over(one) == ''


def test_weights_that_are_no_tensors_are_named():
    arrays = {name: value.numpy() for name, value in WEIGHTS.items()}
    with pytest.raises(CheckpointError, match='the keys weight, bias, with values of type ndarray'):
        state_dict_of(arrays)


# Writing.

PLAIN = {
    'state_dict': OrderedDict(WEIGHTS, parameter=torch.nn.Parameter(torch.zeros(1))),
    'meta': {'classes': ['road', 'sky'], 'size': (713, 713), 'epoch': 3, 'lr': 0.1, 'a': None},
    'fused': True,
    3: 'an int as key',
}


def test_written_files_load_anywhere(tmp_path):
    write_checkpoint(PLAIN, tmp_path / 'x.pth')
    read = torch.load(tmp_path / 'x.pth', weights_only=True)
    assert read['meta'] == PLAIN['meta']
    assert read.keys() == PLAIN.keys()
    assert all(torch.equal(read['state_dict'][name], WEIGHTS[name]) for name in WEIGHTS)
    assert os.listdir(tmp_path) == ['x.pth']


def test_a_models_state_dict_can_be_written(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    write_checkpoint({'state_dict': model.state_dict()}, tmp_path / 'x.pth')
    model.load_state_dict(torch.load(tmp_path / 'x.pth', weights_only=True)['state_dict'])


class Config(dict):
    """As mmengine's ConfigDict: a dict, but pickled as itself."""


class Marked(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ('value', 'kind'),
    [
        (np.float64(0.5), 'numpy.float64'),
        (np.ones(2), 'numpy.ndarray'),
        (Config(a=1), r'test_reading\.Config'),
        (payloads.history(1.0), 'HistoryBuffer'),
        ({1, 2}, 'builtins.set'),
        (Path('x'), 'Path'),
        (torch.ones(1).as_subclass(Marked), 'Marked'),
    ],
)
def test_what_is_not_plain_is_refused(tmp_path, value, kind):
    file = tmp_path / 'x.pth'
    file.write_bytes(b'old')
    with pytest.raises(CheckpointError, match=rf"checkpoint\['meta'\]\['best'\]\[1\].*{kind}"):
        write_checkpoint({**WEIGHTS, 'meta': {'best': [0, value]}}, file)
    assert file.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['x.pth']


def test_other_misuse_of_writing(tmp_path):
    with pytest.raises(CheckpointError, match=r'key np.float64\(1.0\) of type float64'):
        write_checkpoint({np.float64(1.0): 1}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='not Tensor'):
        write_checkpoint(torch.ones(1), tmp_path / 'x.pth')
    with pytest.raises(FileNotFoundError, match=r'x\.pth was not written: No such file'):
        write_checkpoint(WEIGHTS, tmp_path / 'none' / 'x.pth')
    with pytest.raises(IsADirectoryError, match='was not written'):
        write_checkpoint(WEIGHTS, tmp_path)


def test_full_disk_leaves_the_old_file(tmp_path):
    file = tmp_path / 'x.pth'
    write_checkpoint(WEIGHTS, file)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError) as error:
            write_checkpoint({'a': torch.ones(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.match(r'x\.pth was not written: File too large.*free space')
    assert os.listdir(tmp_path) == ['x.pth']
    assert torch.equal(read_checkpoint(file)['bias'], WEIGHTS['bias'])


def test_interruption_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / 'x.pth'
    write_checkpoint(WEIGHTS, file)

    def interrupt(_number):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint({'a': torch.ones(1)}, file)
    assert os.listdir(tmp_path) == ['x.pth']
    assert 'bias' in read_checkpoint(file)


def test_read_only_folder():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / 'x.pth').write_bytes(b'old')
        folder.chmod(0o555)
        root = os.geteuid() == 0  # to whom permissions do not apply
        try:
            if root:
                os.seteuid(65534)
            with pytest.raises(PermissionError, match=r'x\.pth was not written: Permission denied'):
                write_checkpoint(WEIGHTS, folder / 'x.pth')
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
        assert (folder / 'x.pth').read_bytes() == b'old'


def test_a_link_stays_a_link_and_modes_follow_the_umask(tmp_path):
    (tmp_path / 'link.pth').symlink_to(tmp_path / 'x.pth')
    write_checkpoint(WEIGHTS, tmp_path / 'link.pth')
    assert (tmp_path / 'link.pth').is_symlink()
    assert 'bias' in read_checkpoint(tmp_path / 'x.pth')
    umask = os.umask(0)
    os.umask(umask)
    assert (tmp_path / 'x.pth').stat().st_mode & 0o777 == 0o666 & ~umask
