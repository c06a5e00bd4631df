"""No pickle in a checkpoint runs code, and what mmengine puts into one is read."""

import contextlib
import datetime
import os
import pickle
import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from pathlib import Path, PureWindowsPath

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim import OneCycleLR
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from mmseg_repvgg.checkpoint import CheckpointError, UnsafeCheckpointError, read_checkpoint
from tests.checkpoint import payloads


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
    """Control: torch's own list, with getattr and numpy on it, runs the code."""
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
    torch.save({'log': payloads.history(1.0)}, good)
    torch.save({'log': payloads.history(1.0), 'harm': payloads.by_eval(tmp_path / 'trace')}, bad)
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
    loss = payloads.history(2.0, 1.0)
    content = {
        'log_scalars': OrderedDict(loss=loss, same=loss, none=payloads.history()),
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
    torch.save({'log': payloads.history(3.0), 'best': np.float64(0.5), 'a': np.arange(3)}, file)
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
    torch.save({'log': payloads.history(3.0)}, tmp_path / 'x.pth')
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
def test_placeholders_refuse_everything_else(tmp_path, bad):
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
    loop = {'log': payloads.history(1.0)}
    loop['self'] = loop
    deep = (payloads.history(2.0),)
    for _ in range(40):  # 2**40 paths to one buffer
        deep = (deep, deep)
    torch.save({'loop': loop, 'deep': deep}, tmp_path / 'x.pth')
    read = read_checkpoint(tmp_path / 'x.pth')
    assert read['loop']['self']['self'] is read['loop']
    assert read['loop']['log'].current() == 1.0
    while isinstance(read['deep'], tuple):
        read['deep'] = read['deep'][-1]
    assert read['deep'].current() == 2.0


def test_contents_of_other_kinds(tmp_path):
    """What hooks and data sets may leave in the message hub and in the meta information."""
    content = {
        'metainfo': ConfigDict(classes=('road',), groups=dict(flat=[0]), more=[ConfigDict(id=0)]),
        'set': {1, 2},
        'frozen': frozenset({'a'}),
        'path': Path('/x/y'),
        'windows': PureWindowsPath('C:/x'),
        'time': datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.timezone.utc),
        'date': datetime.date(2024, 1, 2),
        'delta': datetime.timedelta(days=1),
        'slice': slice(1, None),
        'range': range(3),
        'complex': 1j,
        'infinite': float('inf'),
        'bytes': b'\xff\0a',
        'bytearray': bytearray(b'\xff'),
        'default': defaultdict(list, a=[np.float32(1)]),
        'deque': deque([np.int64(1), 2], maxlen=5),
        'size': torch.Size([1, 2]),
        'dtype': torch.bfloat16,
        'device': torch.device('cuda', 1),
        'layout': torch.strided,
        'numpy type': np.float32,
        'arrays': [np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.ones((2, 2), '>i4')],
        'numpy state': np.random.RandomState(0).get_state(),
        'python state': random.Random(0).getstate(),
        ('a', 1): {(0, 1): None, np.int64(3): 1, Path('x'): 2},
    }
    for protocol in (2, 4, 5):
        torch.save(content, tmp_path / 'x.pth', pickle_protocol=protocol)
        read = read_checkpoint(tmp_path / 'x.pth')
        assert read.keys() == content.keys()
        state, expected = read.pop('numpy state'), content['numpy state']
        np.testing.assert_array_equal(state[1], expected[1])
        assert state[2:] == expected[2:]
        for array, expected in zip(read.pop('arrays'), content['arrays'], strict=True):
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array, expected)
        for key, value in read.items():
            assert type(value) is type(content[key]), key
            assert value == content[key], key
        assert read['default'].default_factory is list
        assert read['deque'].maxlen == 5
        assert type(read['metainfo'].groups) is type(read['metainfo'].more[0]) is ConfigDict


@pytest.mark.parametrize('strategy', ['cos', 'linear'])
def test_one_cycle_schedulers_go_on(tmp_path, strategy):
    """Their state holds a function; the rates go on as if nothing had been saved."""

    def scheduler():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return optimizer, OneCycleLR(
            optimizer, eta_max=0.1, total_steps=8, by_epoch=False, anneal_strategy=strategy
        )

    def rates(optimizer, schedule, count):
        found = []
        for _ in range(count):
            optimizer.step()
            schedule.step()
            found.append(optimizer.param_groups[0]['lr'])
        return found

    expected = rates(*scheduler(), 7)
    assert len(set(expected)) > 4
    first, schedule = scheduler()
    start = rates(first, schedule, 3)
    for protocol in (2, 4):
        content = dict(param_schedulers=[schedule.state_dict()], optimizer=first.state_dict())
        torch.save(content, tmp_path / 'x.pth', pickle_protocol=protocol)
        read = read_checkpoint(tmp_path / 'x.pth')
        second, resumed = scheduler()
        second.load_state_dict(read['optimizer'])
        resumed.load_state_dict(read['param_schedulers'][0])
        assert start + rates(second, resumed, 4) == expected


def test_tensors_of_subclasses_and_with_attributes(tmp_path):
    parameter = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    parameter.note = 'kept'
    torch.save(dict(a=parameter), tmp_path / 'x.pth')
    read = read_checkpoint(tmp_path / 'x.pth')['a']
    assert (type(read), read.note, read.requires_grad) == (torch.nn.Parameter, 'kept', False)
    torch.save(dict(a=torch.ones(2).as_subclass(Marked)), tmp_path / 'x.pth')
    with pytest.raises(UnsafeCheckpointError, match='Marked'):
        read_checkpoint(tmp_path / 'x.pth')
    with allowed(Marked):
        assert type(read_checkpoint(tmp_path / 'x.pth')['a']) is Marked


class Marked(torch.Tensor):
    pass
