"""Small files that claim to be large are refused at once, without taking memory or time."""

import codecs
import pickle
import resource
import struct
import sys
import threading
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer

from mmseg_repvgg.checkpoint import CheckpointError, read_checkpoint, write_checkpoint
from tests.checkpoint.payloads import Call, _reconstruct, edit_pickle

FOUR = torch.arange(4.0)
HUGE = 10**12


def rebuilt(offset, size, stride):
    """A tensor on the storage of four numbers."""
    return Call(torch._utils._rebuild_tensor_v2, storage(), offset, size, stride, False, None)


def storage():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TypedStorage is deprecated
        return FOUR.storage()


def nested(kind, depth=60):
    """2**60 paths to one empty object, in 60 objects."""
    value = kind()
    for _ in range(depth):
        value = kind((value, value))
    return value


@pytest.fixture
def little_memory():
    """Of what a process may address beyond what it has, 2 GiB: more is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open('/proc/self/statm') as status:
        used = int(status.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


VALUES = {
    'bytearray': Call(bytearray, HUGE),
    'bytes': Call(bytes, HUGE),
    'size': rebuilt(0, (HUGE,), (1,)),
    'expanded': rebuilt(0, (HUGE,), (0,)),
    'offset': rebuilt(HUGE, (1,), (1,)),
    'negative stride': rebuilt(3, (2,), (-1,)),
    'size without stride': rebuilt(0, (2, 2), (1,)),
    'size that is no number': rebuilt(0, ('a', HUGE), (1, 1)),
    'shape that is no number': Call(
        _reconstruct, np.ndarray, (0,), b'b',
        state=(1, ('a', HUGE), np.dtype('f8'), False, bytes(16)),
    ),
    'array of lists in a history': Call(
        HistoryBuffer,
        state={'_log_history': nested(list), '_count_history': nested(list), 'max_length': 9},
    ),
    'list in a sparse tensor': Call(
        torch._utils._rebuild_sparse_tensor,
        torch.sparse_coo, (torch.zeros(1, 2).long(), nested(list), (2,)),
    ),
    'list in a quantized tensor': Call(
        torch._utils._rebuild_qtensor, storage(), 0, (4,), (1,),
        (torch.per_channel_affine, nested(list), [0], 0), False, OrderedDict(),
    ),
    'name in an error': Call(np.dtype, nested(list)),
    'method in an error': Call(getattr, np.ndarray, nested(list)),
}  # fmt: skip


@pytest.mark.filterwarnings('ignore:TypedStorage is deprecated')
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('name', VALUES)
def test_values_that_would_take_all_memory_or_time(tmp_path, little_memory, name, zipped):
    torch.save(dict(a=VALUES[name]), tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    assert (tmp_path / 'x.pth').stat().st_size < 5000
    with pytest.raises(CheckpointError, match=r'x\.pth'):
        read_checkpoint(tmp_path / 'x.pth')


def pickle_only(file, content):
    with zipfile.ZipFile(file, 'w') as archive:
        archive.writestr('archive/data.pkl', content)


def storage_of_a_zip(file):
    torch.save(dict(a=FOUR), file)
    edit_pickle(file, b'K\x04t', b'J\xff\xff\xff\x7ft')


def storage_of_a_legacy_file(file):
    torch.save(dict(a=FOUR), file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes().replace(b'K\x04N', b'J\xff\xff\xff\x7fN'))


def zeros_compressed(file):
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', pickle.dumps({}, 2))
        archive.writestr('archive/data/0', bytes(50_000_000))


def hashed_tuple(file):
    pickle_only(file, b'\x80\x02}' + pickle.dumps(nested(tuple), 2)[2:-1] + b'K\x01s.')


def hashed_in_a_set(file):
    start = b'\x80\x02c__builtin__\nset\n]'
    pickle_only(file, start + pickle.dumps(nested(tuple), 2)[2:-1] + b'a\x85R.')


def header_of_safetensors(file):
    file.write_bytes(struct.pack('<Q', 2**40) + b'{"a":1}')


def shape_of_safetensors(file):
    header = b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    file.write_bytes(struct.pack('<Q', len(header)) + header + bytes(16))


@pytest.mark.parametrize(
    'make',
    [
        storage_of_a_zip,
        storage_of_a_legacy_file,
        zeros_compressed,
        hashed_tuple,
        hashed_in_a_set,
        header_of_safetensors,
        shape_of_safetensors,
        lambda file: pickle_only(file, b'\x80\x04\x96' + struct.pack('<Q', 2**40) + b'.'),
        lambda file: pickle_only(file, b'\x80\x02' + b']' * 100_000 + b'a' * 99_999 + b'.'),
        lambda file: file.write_bytes(b'\x80\x05\x8e' + struct.pack('<Q', 2**40)),
    ],
)
def test_files_that_would_take_all_memory_or_time(tmp_path, little_memory, make):
    make(tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth') as error:
        read_checkpoint(tmp_path / 'x.pth')
    assert len(str(error.value)) < 1000


def test_a_place_far_off_in_the_memo_takes_no_memory(tmp_path, little_memory):
    pickle_only(tmp_path / 'x.pth', b'\x80\x02}r\xff\xff\xff\xff.')  # pickle in C: 64 GiB
    assert read_checkpoint(tmp_path / 'x.pth') == {}


def test_shared_lists_are_read_and_written_once(tmp_path):
    torch.save(dict(a=nested(list)), tmp_path / 'x.pth')
    read = read_checkpoint(tmp_path / 'x.pth')
    assert read['a'][0] is read['a'][1]
    write_checkpoint(read, tmp_path / 'y.pth')


def test_shared_lists_in_a_config_are_walked_once(tmp_path):
    torch.save(dict(a=Call(ConfigDict, dict(b=nested(list)))), tmp_path / 'x.pth')
    read = read_checkpoint(tmp_path / 'x.pth')['a']
    assert type(read) is ConfigDict
    assert read.b[0] is read.b[1]


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_one_text_is_not_copied_again_and_again(tmp_path, little_memory, zipped):
    text = 'a' * 1_000_000
    for count in (4, 4000):
        copies = [Call(codecs.encode, text, 'latin1') for _ in range(count)]
        file = tmp_path / f'{count}.pth'
        torch.save(dict(a=copies), file, _use_new_zipfile_serialization=zipped)
    assert read_checkpoint(tmp_path / '4.pth')['a'] == [text.encode()] * 4
    with pytest.raises(CheckpointError, match=r'4000\.pth.*too much'):
        read_checkpoint(file)


def test_attributes_of_a_state_dict_are_not_replaced(tmp_path):
    code = b'\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb.'
    pickle_only(tmp_path / 'x.pth', code)
    assert list(read_checkpoint(tmp_path / 'x.pth').items()) == []


@pytest.mark.filterwarnings('ignore:Sparse CSR')
@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_what_torch_saves_is_within_the_limits(tmp_path, zipped):
    """Control: views, expanded and empty tensors, a storage used twice, all dtypes."""
    base = torch.arange(12.0).reshape(3, 4)
    content = dict(
        view=base[1:, ::2],
        turned=base.t(),
        expanded=torch.ones(1, 3).expand(5, 3),
        empty=torch.ones(0, 3),
        number=torch.tensor(3),
        parameter=torch.nn.Parameter(torch.ones(2)),
        sparse=torch.eye(3).to_sparse(),
        rows=torch.eye(3).to_sparse_csr(),
        **{
            str(dtype): torch.ones(3).to(dtype)
            for dtype in (torch.float16, torch.bfloat16, torch.int8, torch.bool, torch.complex64)
        },
    )
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(tmp_path / 'x.pth')
    for name, tensor in content.items():
        assert type(read[name]) is type(tensor)
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name].to_dense(), tensor.to_dense())
    assert read['view'].untyped_storage().data_ptr() == read['turned'].untyped_storage().data_ptr()


def test_compressed_files_within_reason_and_wrong_checksums_are_read(tmp_path):
    """Somebody's zip program, and what torch.save writes when told to leave checksums out."""
    torch.save(dict(a=torch.arange(1000)), tmp_path / 'a.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth') as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / 'b.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    assert torch.equal(read_checkpoint(tmp_path / 'b.pth')['a'], torch.arange(1000))
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(dict(a=torch.arange(1000)), tmp_path / 'c.pth')
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_checkpoint(tmp_path / 'c.pth')['a'], torch.arange(1000))


def test_other_threads_see_torchs_own_list(tmp_path):
    """Another thread reads by torch.load all the while; its file needs a name that it added."""
    torch.save(dict(log=np.float64(1.0)), tmp_path / 'ours.pth')
    torch.save(dict(dtype=np.dtype('f8')), tmp_path / 'theirs.pth')
    names = [np.dtype, type(np.dtype('f8'))]
    failures, done = [], threading.Event()

    def read_on():
        while not done.is_set():
            try:
                torch.load(tmp_path / 'theirs.pth', weights_only=True)
            except Exception as error:
                failures.append(error)

    interval = sys.getswitchinterval()
    with torch.serialization.safe_globals(names):
        thread = threading.Thread(target=read_on)
        sys.setswitchinterval(1e-6)
        thread.start()
        try:
            for _ in range(100):
                read_checkpoint(tmp_path / 'ours.pth')
        finally:
            sys.setswitchinterval(interval)
            done.set()
            thread.join()
    assert failures == []
