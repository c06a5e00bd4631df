"""What every test runs under: the same threads, seeds and package family, and little noise."""

import functools
import gc
import http.server
import importlib.util
import os
import random
import threading
from importlib.metadata import distributions
from pathlib import Path

os.environ.setdefault('MPLBACKEND', 'Agg')  # matplotlib reads it once, on import
os.environ.setdefault('OMP_NUM_THREADS', '1')  # of the tools that tests start, as below

import hypothesis
import numpy as np
import pytest
import torch

# The tests' networks are tiny: threads that wait for each other on a busy machine make them ten
# times slower. A fixed number also keeps sums of floats repeatable. `pytest -n` uses the other
# cores.
torch.set_num_threads(1)

# Autograd refuses to run in a process forked from one in which it ran, and a process in which every
# runtime has run threads may crash later on. So these are run in a process of their own, by
# test_isolated.py; named on the command line they run as any other.
ISOLATED = (
    'test_interrupted.py',
    'deploy/test_forked.py',
    'deploy/test_killed.py',
    'deploy/test_sharing.py',
    'engine/test_distributed.py',
)
collect_ignore = list(ISOLATED)

# Time limits per example fail on a busy machine, and a random example that fails only once helps
# nobody.
hypothesis.settings.register_profile('repeatable', deadline=None, derandomize=True)
hypothesis.settings.load_profile('repeatable')


def mm_family() -> str:
    """Return 'openmmlab' or 'onedl', whichever distribution the imported mmengine belongs to."""
    spec = importlib.util.find_spec('mmengine')
    if spec is None or spec.origin is None:
        raise pytest.UsageError('mmengine is not installed: run the tests with `make test`')
    # Both can be installed at once: what counts is the metadata beside the folder that is imported.
    folder = str(Path(spec.origin).parents[1])
    return 'onedl' if any(distributions(name='onedl-mmengine', path=[folder])) else 'openmmlab'


def pytest_configure() -> None:
    wanted = os.environ.get('STACK')
    if wanted and wanted != mm_family():
        raise pytest.UsageError(f'STACK={wanted}, but mmengine is imported from {mm_family()}')


@pytest.fixture(scope='session')
def family() -> str:
    return mm_family()


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Make a test's random numbers independent of the tests before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _restore_float32_precision():
    """Undo what a test sets for the whole process, such as TF32.

    PyTorch raises wherever it reads ``allow_tf32`` and its two interfaces disagree.
    """
    cudnn, matmul, mkldnn = torch.backends.cudnn, torch.backends.cuda.matmul, torch.backends.mkldnn
    settings = [(cudnn, 'allow_tf32'), (matmul, 'allow_tf32')]
    if hasattr(matmul, 'fp32_precision'):  # PyTorch 2.9 and later
        kinds = (cudnn.conv, cudnn.rnn, matmul, mkldnn.conv, mkldnn.rnn, mkldnn.matmul)
        settings += [(kind, 'fp32_precision') for kind in kinds]
    before = [getattr(*setting) for setting in settings]
    yield
    for (kind, name), value in zip(settings, before, strict=True):
        setattr(kind, name, value)


@pytest.fixture(scope='session', autouse=True)
def _quiet_logger() -> None:
    """Create mmengine's default logger before any test does.

    It keeps the stdout of the moment: made inside a test with `capsys`, it would write to a closed
    file in the next.
    """
    from mmengine.logging import MMLogger

    MMLogger.get_instance('mmengine', logger_name='mmengine', log_level='WARNING')


@pytest.fixture(scope='module', autouse=True)
def _collect_quickly() -> None:
    """Spare garbage collections what is there already: mmengine runs one for each data set."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session')
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few demo scenes of 128x64: the data root of a CityscapesDataset."""
    from mmseg_repvgg.datasets.demo_scenes import make_demo_scenes

    root = tmp_path_factory.mktemp('scenes')
    return make_demo_scenes(root, num_train=6, num_val=3, size=(128, 64), workers=1)


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A folder served on this machine: (folder, its URL, the requests so far)."""
    folder, requests = tmp_path / 'served', []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, _format, *args):
            requests.append(args[0])

    server = http.server.ThreadingHTTPServer(
        ('127.0.0.1', 0), functools.partial(Handler, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
    thread.start()
    monkeypatch.setenv('no_proxy', '*')
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    try:
        yield folder, f'http://127.0.0.1:{server.server_address[1]}', requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
