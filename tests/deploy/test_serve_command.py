"""``mmseg-repvgg serve`` with a real model: many requests at once, some broken, and its end."""

import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('fastapi')
pytest.importorskip('onnxruntime')

from tests.deploy.test_service import BROKEN, ask, counted, file_of, pixels_of

PROJECT = Path(__file__).parents[2]
REQUESTS, CALLERS = 200, 8


@pytest.fixture(scope='module')
def model(segmentor, tmp_path_factory):
    from mmseg_repvgg.deploy.export import Options, export

    out = tmp_path_factory.mktemp('served') / 'm.onnx'
    return export(segmentor[0], segmentor[2], out, options=Options(dynamic_size=True)).path


@pytest.mark.slow
def test_many_requests_at_once_get_the_librarys_labels(model):
    from mmseg_repvgg.deploy.segmenter import Segmenter

    drawn = np.random.default_rng(0)
    images = [drawn.integers(0, 256, (64 + 3 * i, 99 - i, 3), np.uint8) for i in range(10)]
    expected = [Segmenter(model)(image) for image in images]
    arguments = [model, '--port', '0', '--at-once', '2', '--threads', '1', '--waiting', '100']
    process = subprocess.Popen(
        [sys.executable, '-m', 'mmseg_repvgg', 'serve', *map(str, arguments), '--max-mb', '1'],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(re.fullmatch(r'serving at .*:(\d+)\n', process.stdout.readline())[1])

        def one(index):
            start = time.perf_counter()
            if index % 4 == 3:
                status, _, _ = ask(port, '/labels', BROKEN[1 + index // 4 % 4][0])
                return status == 422, time.perf_counter() - start
            status, _, body = ask(port, '/labels', file_of(images[index % 10]))
            right = status == 200 and np.array_equal(pixels_of(body), expected[index % 10])
            return right, time.perf_counter() - start

        with ThreadPoolExecutor(CALLERS) as pool:
            start = time.perf_counter()
            results = list(pool.map(one, range(REQUESTS)))
            seconds = time.perf_counter() - start
        times = sorted(time for _, time in results)
        print(f'{REQUESTS} requests in {seconds:.1f} s, p95 {1000 * times[190]:.0f} ms')
        assert all(right for right, _ in results)
        assert counted(port, '/labels', 200) == 150
        assert counted(port, '/labels', 422) == 50
        too_small = file_of(images[0][:50])
        assert ask(port, '/labels', too_small)[0] == 422
        assert ask(port, '/health')[0] == 200
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 0, errors
    assert 'Traceback' not in errors
