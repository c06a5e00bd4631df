"""Safe reading, finding the weights, writing."""

import contextlib
import os
import pickle
import resource
import sys
import tempfile
import zipfile
from collections import Counter, OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from mmseg_repvgg.checkpoint import (
    CheckpointError,
    UnsafeCheckpointError,
    read_checkpoint,
    state_dict_of,
    write_checkpoint,
)
from mmseg_repvgg.checkpoint.pickled import stand_ins
from tests.checkpoint import payloads

WEIGHTS = {'weight': torch.arange(6.0).reshape(2, 3), 'bias': torch.ones(2)}


@contextlib.contextmanager
def allowed(*entries):
    """Add to torch's list of safe globals, and put it back."""
    before = get_safe_globals()
    add_safe_globals(list(entries))
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def history(*values):
    buffer = HistoryBuffer()
    for value in values:
        buffer.update(value)
    return buffer


# Harmful files.


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('place', ['meta', 'message_hub'])
@pytest.mark.parametrize('harm', payloads.RUNNING)
def test_code_in_a_pickle_is_not_run(tmp_path, harm, place, zipped):
    trace = tmp_path / 'trace'
    file = payloads.save(tmp_path / 'x.pth', harm(trace), place, zipped)

    with pytest.raises(UnsafeCheckpointError) as error:
        read_checkpoint(file)

    assert not trace.exists()
    assert str(file) in str(error.value)
    assert 'not run' in str(error.value)
    assert 'add_safe_globals' in str(error.value)

    with contextlib.suppress(Exception):  # control: it is real; some fail after the deed
        torch.load(file, weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize(
    ('harm', 'named'),
    [
        (payloads.by_system, f'{os.system.__module__}.system'),
        (payloads.by_eval, 'eval'),
        (payloads.by_getattr, "getattr(..., '__init__')"),
        (payloads.by_pointer, "numpy.dtype('O')"),
    ],
)
def test_the_error_names_what_was_blocked(tmp_path, harm, named):
    file = payloads.save(tmp_path / 'x.pth', harm(tmp_path / 'trace'), 'meta')
    with pytest.raises(UnsafeCheckpointError, match='asks for') as error:
        read_checkpoint(file)
    assert named in str(error.value)


def test_allowing_the_names_as_they_are_would_not_be_safe(tmp_path):
    """Control for the stand-ins: torch's own list, with getattr and numpy on it, runs the code."""
    trace = tmp_path / 'trace'
    running = payloads.save(tmp_path / 'a.pth', payloads.by_getattr(trace), 'message_hub')
    pointer = payloads.save(tmp_path / 'b.pth', payloads.by_pointer(trace), 'meta')
    with torch.serialization.safe_globals(payloads.NAIVE):
        with contextlib.suppress(Exception):
            torch.load(running, weights_only=True)
        array = torch.load(pointer, weights_only=True)['meta']['cfg']
    assert trace.exists()
    assert array.dtype.char == 'O'  # made of bytes; looking at an element would crash


def test_a_getattr_allowed_for_others_does_not_act_here(tmp_path):
    trace = tmp_path / 'trace'
    file = payloads.save(tmp_path / 'x.pth', payloads.by_getattr(trace), 'meta')
    with allowed(*payloads.NAIVE), pytest.raises(UnsafeCheckpointError, match='getattr'):
        read_checkpoint(file)
    assert not trace.exists()
    with allowed(*payloads.NAIVE, Extra), stand_ins():  # of two entries torch takes either one
        assert not set(payloads.NAIVE[:5]) & set(get_safe_globals())
        assert Extra in get_safe_globals()


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('protocol', [0, 4])
def test_bare_pickles_are_not_run(tmp_path, protocol):
    file, trace = tmp_path / 'x.pth', tmp_path / 'trace'
    file.write_bytes(pickle.dumps({'a': payloads.by_eval(trace)}, protocol))
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        read_checkpoint(file)
    assert not trace.exists()
    pickle.loads(file.read_bytes())
    assert trace.exists()


class Extra:
    """What a user may have in a checkpoint."""


def test_the_users_own_additions_count(tmp_path):
    torch.save({'extra': Extra()}, tmp_path / 'x.pth')
    with pytest.raises(UnsafeCheckpointError, match=r'Extra'):
        read_checkpoint(tmp_path / 'x.pth')
    with allowed(Extra):
        assert type(read_checkpoint(tmp_path / 'x.pth')['extra']) is Extra


def test_torchs_list_is_as_it_was(tmp_path):
    good, bad = tmp_path / 'good.pth', tmp_path / 'bad.pth'
    torch.save({'log': history(1.0)}, good)
    torch.save({'log': history(1.0), 'harm': payloads.by_eval(tmp_path / 'trace')}, bad)
    with allowed(Extra, (Extra, 'elsewhere.Extra')):
        before = set(get_safe_globals())
        read_checkpoint(good)
        assert set(get_safe_globals()) == before
        with pytest.raises(UnsafeCheckpointError):
            read_checkpoint(bad)
        assert set(get_safe_globals()) == before


# What training checkpoints hold.


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_contents_of_a_message_hub(tmp_path, zipped):
    loss = history(2.0, 1.0)
    content = {
        'log_scalars': OrderedDict(loss=loss, same=loss, none=history()),
        'runtime_info': {
            'best': np.float64(0.25),
            'small': np.float32(0.5),
            'flag': np.bool_(True),
            'count': np.int64(-3),
            'text': np.str_('mIoU'),
        },
        'arrays': [
            np.arange(6, dtype=np.int16).reshape(2, 3),
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.array([], dtype=np.float32),
            np.array(7.5),
            np.array([1, 2], dtype='>i4'),
            np.array(['road', 'sky']),
            np.array([True, False]),
        ],
        'dtype': np.dtype('float32'),
        'milestones': Counter({3: 1, 8: 2}),
        'nested': (1, [np.float64(2.0)], {'x': (np.ones(2),)}),
    }
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):  # control: torch alone does not read it
        torch.load(tmp_path / 'x.pth', weights_only=True)

    read = read_checkpoint(tmp_path / 'x.pth')

    log = read['log_scalars']
    assert type(log['loss']) is HistoryBuffer
    assert log['loss'] is log['same']
    assert log['loss'].data[0].tolist() == [2.0, 1.0]
    assert log['loss'].data[1].tolist() == [1, 1]
    assert log['loss'].mean() == 1.5
    assert log['loss'].statistics('min') == 1.0
    assert log['none'].data[0].tolist() == []
    log['loss'].update(0.5)
    assert log['loss'].current() == 0.5
    assert read['runtime_info'] == content['runtime_info']
    for name, value in content['runtime_info'].items():
        assert type(read['runtime_info'][name]) is type(value)
    for array, expected in zip(read['arrays'], content['arrays'], strict=True):
        assert type(array) is np.ndarray
        assert array.dtype == expected.dtype
        assert array.flags.f_contiguous == expected.flags.f_contiguous
        np.testing.assert_array_equal(array, expected)
        array[...] = expected  # writable
    assert read['dtype'] == np.dtype('float32')
    assert read['milestones'] == Counter({3: 1, 8: 2})
    assert read['nested'][1] == [2.0]
    assert type(read['nested'][2]['x'][0]) is np.ndarray


@pytest.mark.parametrize('package', ['numpy.core', 'numpy._core'])
def test_numpy_1_and_2_write_different_names(tmp_path, package):
    file = tmp_path / 'x.pth'
    torch.save({'log': history(3.0), 'best': np.float64(0.5), 'a': np.arange(3)}, file)
    for function in (np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]):
        name = function.__name__
        payloads.edit_pickle(
            file,
            f'c{function.__module__}\n{name}\n'.encode(),
            f'c{package}.multiarray\n{name}\n'.encode(),
        )
    read = read_checkpoint(file)
    assert read['best'] == 0.5
    assert read['a'].tolist() == [0, 1, 2]
    assert read['log'].current() == 3.0


def test_without_mmengine_a_history_is_a_dict(tmp_path, monkeypatch):
    torch.save({'log': history(3.0)}, tmp_path / 'x.pth')
    monkeypatch.setitem(sys.modules, 'mmengine.logging', None)
    read = read_checkpoint(tmp_path / 'x.pth')['log']
    assert read['log_history'].tolist() == [3.0]
    assert read['count_history'].tolist() == [1]
    assert read['max_length'] == 1000000


@pytest.mark.parametrize(
    'bad',
    [
        payloads.Call(np.dtype, 'O', False, True),
        payloads.Call(np.dtype, 'f8,O', False, True),
        np.array([{}, None], dtype=object),
        payloads.Call(getattr, HistoryBuffer, 'register_statistics'),
        payloads.Call(getattr, np.ndarray, 'min'),
        payloads.Call(np.float64(0).__reduce__()[0], np.dtype('f8'), 'text'),
    ],
    ids=['dtype', 'structured', 'array', 'method', 'owner', 'scalar'],
)
def test_stand_ins_refuse_everything_else(tmp_path, bad):
    torch.save({'bad': bad}, tmp_path / 'x.pth')
    with pytest.raises(UnsafeCheckpointError):
        read_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize('shape', [(3,), (-1,), (1, 2, 2), (2**62,)])
def test_an_array_of_the_wrong_size_is_refused(tmp_path, shape):
    state = (1, shape, np.dtype('f8'), False, bytes(16))
    bad = payloads.Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b'b', state=state)
    torch.save({'bad': bad}, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match='16 bytes'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_history_in_a_loop_and_in_tuples_of_tuples(tmp_path):
    loop = {'log': history(1.0)}
    loop['self'] = loop
    deep = (history(2.0),)
    for _ in range(40):  # 2**40 paths to one buffer
        deep = (deep, deep)
    torch.save({'loop': loop, 'deep': deep}, tmp_path / 'x.pth')
    read = read_checkpoint(tmp_path / 'x.pth')
    assert read['loop']['self']['self'] is read['loop']
    assert read['loop']['log'].current() == 1.0
    while isinstance(read['deep'], tuple):
        read['deep'] = read['deep'][-1]
    assert read['deep'].current() == 2.0


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


def test_before_torch_2_6_plain_weights_are_read(tmp_path, monkeypatch):
    for module in ('pickled', 'reading'):
        monkeypatch.setattr(f'mmseg_repvgg.checkpoint.{module}.CAN_STAND_IN', False)
    torch.save(WEIGHTS, tmp_path / 'weights.pth')
    torch.save({**WEIGHTS, 'log': history(1.0)}, tmp_path / 'training.pth')
    assert read_checkpoint(tmp_path / 'weights.pth').keys() == WEIGHTS.keys()
    with pytest.raises(UnsafeCheckpointError, match=r'HistoryBuffer.*need torch >= 2\.6'):
        read_checkpoint(tmp_path / 'training.pth')


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
        (history(1.0), 'HistoryBuffer'),
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
