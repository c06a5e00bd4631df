"""The HTTP service: the library's labels, clear errors, and no request that takes it down."""

import http.client
import io
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
from PIL import Image

pytest.importorskip('fastapi')
uvicorn = pytest.importorskip('uvicorn')

from mmseg_repvgg.deploy.segmenter import Segmenter  # noqa: E402
from mmseg_repvgg.deploy.service import Limits, create_app, run  # noqa: E402
from tests.deploy.networks import FOUR, FakeNetwork, by_position, draw  # noqa: E402

PALETTE = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90))


def segmenter_of(function=by_position, **info):
    return Segmenter(FakeNetwork(function, **{**FOUR, 'palette': PALETTE, **info}))


@contextmanager
def serving(segmenter, limits=None):
    """A service on a free port of this machine; gives the port."""
    config = uvicorn.Config(create_app(segmenter, 'fake', limits), log_level='critical')
    server, listening = uvicorn.Server(config), socket.create_server(('127.0.0.1', 0))
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listening]), daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listening.close()
    assert not thread.is_alive()


@pytest.fixture(scope='module')
def port():
    limits = Limits(num_bytes=200_000, pixels=10_000, at_once=2, waiting=100, seconds=0.3)
    with serving(segmenter_of(), limits) as port:
        yield port


def ask(port, path, body=None):
    """Status, content type and body of an answer."""
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=20)
    connection.request('GET' if body is None else 'POST', path, body)
    answer = connection.getresponse()
    found = answer.status, answer.headers['content-type'], answer.read()
    connection.close()
    return found


def reason(port, *args):
    """Status and reason of an error."""
    status, kind, body = ask(port, *args)
    assert kind == 'application/json'
    return status, str(json.loads(body)['detail'])


def file_of(image, suffix='.png'):
    return cv2.imencode(suffix, image)[1].tobytes()


def pixels_of(png):
    return np.asarray(Image.open(io.BytesIO(png)))


@pytest.mark.parametrize('suffix', ['.png', '.jpg', '.bmp', '.webp'])
def test_labels_are_those_of_the_library(port, tmp_path, suffix):
    path, segmenter = tmp_path / f'x{suffix}', segmenter_of()
    path.write_bytes(file_of(draw(20, 31), suffix))
    status, kind, body = ask(port, '/labels', path.read_bytes())
    assert (status, kind) == (200, 'image/png')
    expected = segmenter(path)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(pixels_of(body), expected)
    assert Image.open(io.BytesIO(body)).getpalette()[:12] == [c for rgb in PALETTE for c in rgb]


def test_an_overlay(port):
    image, segmenter = draw(20, 31), segmenter_of()
    for query, opacity in (('', 0.5), ('?opacity=0.25', 0.25)):
        status, kind, body = ask(port, f'/overlay{query}', file_of(image))
        assert (status, kind) == (200, 'image/png')
        expected = segmenter.overlay(image, segmenter(image), opacity)
        assert np.array_equal(cv2.imdecode(np.frombuffer(body, np.uint8), 1), expected)


def bomb(height, width):
    """A PNG that names more pixels than it holds."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack('>I', len(content)) + name + content + struct.pack('>I', check)

    header = struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    rest = chunk(b'IDAT', zlib.compress(b'\0')) + chunk(b'IEND', b'')
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + rest


BROKEN = [
    (b'', 400, 'the body is empty; send an image file'),
    (b'not an image', 422, 'the body is not an image file'),
    (b'\x89PNG\r\n\x1a\n', 422, 'the body is not an image file'),
    (file_of(draw(20, 31))[:200], 422, 'the body'),
    (b'\xff\xd8\xff\xe0' + bytes(100), 422, 'the body'),
    (bytes(200_001), 413, 'the body has more than 200000 bytes, the limit'),
    (file_of(np.zeros((101, 100, 3), np.uint8)), 422, 'of 101x100 has 10100 pixels, more than 100'),
    (bomb(60_000, 60_000), 422, 'more than 10000'),
]


@pytest.mark.parametrize(('body', 'status', 'text'), BROKEN)
def test_a_broken_image_is_answered_with_the_reason(port, body, status, text):
    found, detail = reason(port, '/labels', body)
    assert found == status
    assert text in detail


def test_other_mistakes(port):
    image = file_of(draw(8, 8))
    assert reason(port, '/overlay?opacity=2', image) == (422, 'opacity=2.0 must be from 0 to 1')
    assert reason(port, '/overlay?opacity=nan', image)[0] == 422
    assert 'valid number' in reason(port, '/overlay?opacity=x', image)[1]
    assert reason(port, '/labels')[0] == 405
    assert reason(port, '/nowhere', image)[0] == 404
    chunked = iter([bytes(150_000)] * 2)  # without a length
    assert reason(port, '/labels', chunked)[0] == 413


def test_a_body_that_does_not_arrive(port):
    with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(b'POST /labels HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc')
        assert b' 408 ' in connection.recv(1000)
    with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(b'POST /labels HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nabc')
    with socket.create_connection(('127.0.0.1', port), timeout=10) as connection:
        connection.sendall(b'\x00\x01 no HTTP\r\n\r\n')
        assert b' 400 ' in connection.recv(1000)
    assert ask(port, '/health')[0] == 200


def test_concurrent_and_broken_requests_get_their_own_answers(port):
    """Every third is broken; the others get the library's labels, each of its own image."""
    segmenter, drawn = segmenter_of(), np.random.default_rng(0)
    images = [drawn.integers(0, 256, (9 + i % 7, 12 + i, 3), np.uint8) for i in range(40)]
    before = counted(port, '/labels', 200), counted(port, '/labels', 422)

    def one(index):
        if index % 3 == 2:
            return ask(port, '/labels', BROKEN[1 + index % 4][0])[0] == 422
        status, _, body = ask(port, '/labels', file_of(images[index]))
        return status == 200 and np.array_equal(pixels_of(body), segmenter(images[index]))

    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(one, range(len(images))))
    assert all(right)
    after = counted(port, '/labels', 200), counted(port, '/labels', 422)
    assert (after[0] - before[0], after[1] - before[1]) == (27, 13)
    assert not np.array_equal(segmenter(images[0][::-1]), segmenter(images[0]))  # control


def counted(port, path, status):
    """What /metrics says of answers."""
    text = ask(port, '/metrics')[2].decode()
    name = f'mmseg_repvgg_requests_total{{path="{path}",status="{status}"}} '
    return sum(float(x.removeprefix(name)) for x in text.splitlines() if x.startswith(name))


def test_health_model_and_metrics(port):
    status, _, body = ask(port, '/health')
    assert (status, json.loads(body)['status'], json.loads(body)['model']) == (200, 'ok', 'fake')
    assert json.loads(ask(port, '/model')[2])['classes'] == ['a', 'b', 'c', 'd']
    ask(port, '/labels', file_of(draw(8, 8)))
    text = ask(port, '/metrics')[2].decode()
    assert 'mmseg_repvgg_seconds_count ' in text
    assert 'mmseg_repvgg_open_requests 1.0' in text  # this one


def test_too_many_at_once_are_told_so():
    started, finish = threading.Semaphore(0), threading.Event()

    def slow(images):
        started.release()
        finish.wait(10)
        return by_position(images)

    image = file_of(draw(8, 12))
    with serving(segmenter_of(slow), Limits(at_once=1, waiting=1)) as port:
        with ThreadPoolExecutor(2) as pool:
            answers = [pool.submit(ask, port, '/labels', image) for _ in range(2)]
            assert started.acquire(timeout=10)
            while open_requests(port) < 3:  # both, and the one that asks
                time.sleep(0.01)
            time.sleep(0.1)
            assert reason(port, '/labels', image) == (503, '1 images wait already')
            assert ask(port, '/health')[0] == 200
            finish.set()
        assert [answer.result()[0] for answer in answers] == [200, 200]
        assert ask(port, '/labels', image)[0] == 200


def open_requests(port):
    text = ask(port, '/metrics')[2].decode()
    return float(text.split('\nmmseg_repvgg_open_requests ')[1].split('\n')[0])


def test_a_failing_network_does_not_stop_the_service():
    calls = []

    def failing(images):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError('secret path')
        return by_position(images)

    with serving(segmenter_of(failing)) as port:
        image = file_of(draw(8, 12))
        text = 'the image could not be segmented; see the log'
        assert reason(port, '/labels', image) == (500, text)
        assert ask(port, '/labels', image)[0] == 200


def test_windows_larger_than_the_image_are_explained():
    with serving(segmenter_of(stride=(4, 4))) as port:
        status, detail = reason(port, '/labels', file_of(draw(4, 4)))
        assert status == 422
        assert 'smaller than the windows of the exported model' in detail


@pytest.mark.parametrize(
    ('limits', 'text'),
    [
        (dict(num_bytes=0), 'num_bytes=0 must be an integer, at least 1'),
        (dict(at_once=1.5), 'at_once=1.5 must be an integer, at least 1'),
        (dict(waiting=-1), 'waiting=-1 must be an integer, at least 0'),
        (dict(seconds=0), 'seconds=0 must be a finite number above 0'),
    ],
)
def test_wrong_limits_are_refused(limits, text):
    with pytest.raises(ValueError, match=text):
        Limits(**limits)


@pytest.mark.parametrize('port', [None, 70_000])
def test_a_port_that_is_taken_is_named(port):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        wanted = port or taken.getsockname()[1]
        with pytest.raises(OSError, match=f'cannot listen at 127.0.0.1, port {wanted}: '):
            run(create_app(segmenter_of()), '127.0.0.1', wanted)


def test_the_service_imports_neither_pytorch_nor_mm_packages():
    code = (
        'import sys; import mmseg_repvgg.commands.serve; '
        'print(sorted({"torch", "torchvision", "mmengine", "mmcv", "mmseg"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == '[]', done.stderr
