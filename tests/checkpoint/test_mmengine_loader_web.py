"""mmengine reads checkpoints from the web safely; the web is a server on this machine."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, checkpoint

from mmseg_repvgg.checkpoint import CheckpointError, UnsafeCheckpointError, mmengine_loader
from tests.checkpoint import payloads


def test_download_is_read_safely_and_cached(web, tmp_path):
    folder, url, requests = web
    payloads.save(folder / 'x.pth', '', 'meta')
    for _ in range(2):
        read = CheckpointLoader.load_checkpoint(f'{url}/x.pth', map_location='cpu')
        assert read['state_dict'].keys() == {'weight', 'bias'}
    assert len(requests) == 1
    cache = tmp_path / 'cache' / 'hub' / 'checkpoints'
    assert sorted(os.listdir(cache)) == ['x.pth', 'x.pth.url']
    assert (cache / 'x.pth.url').read_text() == f'{url}/x.pth'


def test_files_of_one_name_do_not_collide(web, tmp_path):
    folder, url, requests = web
    for name in ('a', 'b'):
        (folder / name).mkdir()
        torch.save({name: torch.ones(1)}, folder / name / 'x.pth')
    for _ in range(2):
        for name in ('a', 'b'):
            assert CheckpointLoader.load_checkpoint(f'{url}/{name}/x.pth').keys() == {name}
        assert CheckpointLoader.load_checkpoint(f'{url}/b/x.pth?of=b').keys() == {'b'}
    assert len(requests) == 3


def test_a_file_put_into_the_cache_is_used(web, tmp_path):
    _, url, requests = web
    cache = tmp_path / 'cache' / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    torch.save(dict(mine=torch.ones(1)), cache / 'x.pth')
    assert CheckpointLoader.load_checkpoint(f'{url}/x.pth').keys() == {'mine'}
    assert requests == []


def test_the_hash_in_a_name_is_checked(web, tmp_path):
    folder, url, _ = web
    content = payloads.save(folder / 'x.pth', '', 'meta').read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    good, wrong = f'good-{digest[:8]}.pth', 'bad-0a0a0a0a.pth'
    for name in (good, wrong, 'of-20241231.pth'):  # the last is a date
        (folder / name).write_bytes(content)
    assert 'state_dict' in CheckpointLoader.load_checkpoint(f'{url}/of-20241231.pth')
    if not digest[:8].isdigit():
        assert 'state_dict' in CheckpointLoader.load_checkpoint(f'{url}/{good}')
    with pytest.raises(CheckpointError, match='not match the hash in its name.*0a0a0a0a'):
        CheckpointLoader.load_checkpoint(f'{url}/{wrong}')
    assert not (tmp_path / 'cache' / 'hub' / 'checkpoints' / wrong).exists()


def test_download_does_not_run_what_is_in_it(web, tmp_path):
    folder, url, _ = web
    trace = tmp_path / 'trace'
    payloads.save(folder / 'x.pth', payloads.by_eval(trace), 'meta')
    with pytest.raises(UnsafeCheckpointError):
        CheckpointLoader.load_checkpoint(f'{url}/x.pth')
    assert not trace.exists()
    checkpoint.load_url(f'{url}/x.pth')  # control: what both families call
    assert trace.exists()


def test_names_of_published_models_are_read_safely(web, tmp_path, monkeypatch):
    folder, url, _ = web
    trace = tmp_path / 'trace'
    payloads.save(folder / 'good.pth', '', 'meta')
    payloads.save(folder / 'bad.pth', payloads.by_eval(trace), 'meta')
    urls = {'good': f'{url}/good.pth', 'bad': f'{url}/bad.pth'}
    for table in ('get_torchvision_models', 'get_external_models', 'get_mmcls_models'):
        monkeypatch.setattr(checkpoint, table, lambda: urls)
    for scheme in ('torchvision', 'modelzoo', 'open-mmlab', 'openmmlab', 'mmcls'):
        assert 'state_dict' in CheckpointLoader.load_checkpoint(f'{scheme}://good')
        with pytest.raises(UnsafeCheckpointError):
            CheckpointLoader.load_checkpoint(f'{scheme}://bad')
    assert not trace.exists()


def test_failed_downloads_are_explained(web, tmp_path):
    folder, url, _ = web
    cached = tmp_path / 'cache' / 'hub' / 'checkpoints' / 'none.pth'
    with pytest.raises(CheckpointError, match=r'could not be downloaded.*404') as error:
        CheckpointLoader.load_checkpoint(f'{url}/none.pth')
    assert f'put it at {cached}' in str(error.value)
    assert not cached.exists()
    with pytest.raises(CheckpointError, match='could not be downloaded'):
        CheckpointLoader.load_checkpoint('http://127.0.0.1:1/x.pth')
    (folder / 'page.pth').write_text('<html>not found</html>')
    with pytest.raises(CheckpointError, match='a web page'):
        CheckpointLoader.load_checkpoint(f'{url}/page.pth')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
def test_a_download_that_was_cut_short_is_downloaded_again(web, tmp_path, zipped):
    folder, url, requests = web
    file = payloads.save(folder / 'x.pth', '', 'meta', zipped)
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    for _ in range(2):
        with pytest.raises(CheckpointError, match=f'Try again.*from {url}/x.pth and is removed'):
            CheckpointLoader.load_checkpoint(f'{url}/x.pth')
    file.write_bytes(whole)
    assert 'state_dict' in CheckpointLoader.load_checkpoint(f'{url}/x.pth')
    assert len(requests) == 3
    cached = tmp_path / 'cache' / 'hub' / 'checkpoints' / 'mine.pth'
    cached.write_bytes(whole[:-20])  # put there by a user
    with pytest.raises(CheckpointError, match='mine.pth.*Delete it'):
        CheckpointLoader.load_checkpoint(f'{url}/mine.pth')
    assert cached.exists()


def test_a_url_without_a_file(web):
    _, url, requests = web
    for path in ('', '/', '/?file=x.pth'):
        with pytest.raises(CheckpointError, match='names no file; give the URL of the checkpoint'):
            CheckpointLoader.load_checkpoint(url + path)
    assert requests == []


@pytest.mark.parametrize('place', ['', 'hub/checkpoints'])
def test_a_cache_that_cannot_be_written(web, monkeypatch, place):
    folder, url, _ = web
    payloads.save(folder / 'x.pth', '', 'meta')
    with tempfile.TemporaryDirectory() as name:
        monkeypatch.setenv('TORCH_HOME', name)
        closed = Path(name) / place
        closed.mkdir(parents=True, exist_ok=True)
        cached = Path(name) / 'hub' / 'checkpoints' / 'x.pth'
        for path in (Path(name), *closed.parents):
            if path.is_relative_to(name):
                path.chmod(0o755)
        closed.chmod(0o555)
        try:
            with (
                as_nobody(),
                pytest.raises(CheckpointError, match='cannot be kept in .*Set TORCH_HOME') as error,
            ):
                CheckpointLoader.load_checkpoint(f'{url}/x.pth')
            assert 'network' not in str(error.value)
            if place:  # a file that is there is read
                payloads.save(cached, '', 'meta')
                with as_nobody():
                    assert 'state_dict' in CheckpointLoader.load_checkpoint(f'{url}/x.pth')
        finally:
            closed.chmod(0o755)


@contextlib.contextmanager
def as_nobody():
    """Run without root's rights, to whom permissions do not apply."""
    is_root = os.geteuid() == 0
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ('rank', 'local_rank', 'requested_before'),
    [(0, '0', 1), (3, '1', 0), (2, '0', 1), (1, None, 0)],
)
def test_one_process_of_each_machine_downloads(
    web, tmp_path, monkeypatch, rank, local_rank, requested_before
):
    """Process ``rank`` of four on two machines; its neighbour's file is there after the barrier."""
    folder, url, requests = web
    payloads.save(folder / 'x.pth', '', 'meta')
    at_barrier = []

    def barrier():
        at_barrier.append(len(requests))
        if not requested_before:
            payloads.save(tmp_path / 'x.pth', '', 'meta')

    monkeypatch.setattr('mmengine.dist.get_dist_info', lambda: (rank, 4))
    monkeypatch.setattr(torch.distributed, 'barrier', barrier)
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    if local_rank is not None:
        monkeypatch.setenv('LOCAL_RANK', local_rank)
    read = mmengine_loader.load_from_http(f'{url}/x.pth', 'cpu', model_dir=str(tmp_path))
    assert 'state_dict' in read
    assert at_barrier == [requested_before]
    assert len(requests) == requested_before


def test_nobody_waits_for_a_failed_download(web, tmp_path, monkeypatch):
    _, url, _ = web
    at_barrier = []
    monkeypatch.setattr('mmengine.dist.get_dist_info', lambda: (0, 2))
    monkeypatch.setattr(torch.distributed, 'barrier', lambda: at_barrier.append(True))
    with pytest.raises(CheckpointError):
        mmengine_loader.load_from_http(f'{url}/none.pth', model_dir=str(tmp_path))
    assert at_barrier == [True]
