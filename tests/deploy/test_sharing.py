"""One loaded model in many threads and processes, in every runtime."""

import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest

from mmseg_repvgg.deploy.export import Options, export
from mmseg_repvgg.deploy.model_description import FORMATS
from mmseg_repvgg.deploy.runtimes import RUNTIMES, load_runtime
from mmseg_repvgg.deploy.runtimes.base import num_cores
from mmseg_repvgg.deploy.segmenter import Segmenter

SIZE = (49, 70)
THREADS, CALLS = 6, 8


@pytest.fixture(scope='module')
def models(segmentor, tmp_path_factory):
    """A file for each format, made when first asked for."""
    cfg, _, checkpoint = segmentor
    folder, made = tmp_path_factory.mktemp('shared'), {}

    def get(runtime):
        model_format = RUNTIMES[runtime].formats[0]
        if model_format not in made:
            out = folder / f'm{FORMATS[model_format]}'
            made[model_format] = export(cfg, checkpoint, out, options=Options(SIZE)).path
        return made[model_format]

    return get


def draw(seed):
    patches = np.random.default_rng(seed).integers(0, 256, (7, 10, 3), np.uint8)
    return patches.repeat(7, 0).repeat(7, 1)


IMAGES = [draw(seed) for seed in range(THREADS)]


def in_threads(run):
    """What THREADS threads get, each calling ``run`` CALLS times on an image of its own."""
    start = threading.Barrier(THREADS)

    def work(image):
        start.wait()
        return [run(image) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, IMAGES))


def wrong(run):
    """How many results of threads are not those of calls one after the other."""
    expected = [run(image) for image in IMAGES]
    assert all((one != two).any() for one, two in pairwise(expected))
    results = in_threads(run)
    pairs = [
        (found, right) for all_, right in zip(results, expected, strict=True) for found in all_
    ]
    return sum(not np.array_equal(found, right) for found, right in pairs)


@pytest.mark.parametrize('runtime', list(RUNTIMES))
def test_threads_that_share_a_segmenter_get_their_own_labels(models, runtime):
    pytest.importorskip(RUNTIMES[runtime].needs)
    assert wrong(Segmenter(models(runtime), runtime, threads=1)) == 0


def test_openvino_runs_as_many_calls_at_once_as_there_are_cpus(models, monkeypatch):
    """INFERENCE_NUM_THREADS is of all streams together; calls beyond the streams wait."""
    pytest.importorskip('openvino')
    if num_cores() < 2:
        pytest.skip('OpenVINO has no more streams than CPUs')
    monkeypatch.setattr('mmseg_repvgg.deploy.runtimes.openvino.num_cores', lambda: 2)
    for threads, streams in ((1, 2), (2, 1), (3, 1)):
        model = load_runtime(models('openvino'), 'openvino', threads=threads).model
        assert int(model.get_property('NUM_STREAMS')) == streams
        if threads * streams <= num_cores():
            assert model.get_property('INFERENCE_NUM_THREADS') == threads * streams


def test_mnn_runs_as_many_calls_at_once_as_there_are_cpus(models, monkeypatch):
    mnn = pytest.importorskip('mmseg_repvgg.deploy.runtimes.mnn', exc_type=ImportError)
    monkeypatch.setattr(mnn, 'num_cores', lambda: 2)
    for threads, calls in ((1, 2), (2, 1), (3, 1)):
        assert load_runtime(models('mnn'), 'mnn', threads=threads).sessions.qsize() == calls
    segmenter, run = Segmenter(models('mnn'), threads=1), mnn.Session.run
    meeting = threading.Barrier(2)

    def run_together(session, images):
        meeting.wait(60)  # raises BrokenBarrierError if a call waits for another
        return run(session, images)

    monkeypatch.setattr(mnn.Session, 'run', run_together)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(segmenter, IMAGES[:2]))
    monkeypatch.undo()
    assert all(
        np.array_equal(labels, segmenter(i)) for labels, i in zip(found, IMAGES, strict=False)
    )


def test_the_comparison_sees_buffers_that_are_shared(models):
    """Negative control: what writes its result to one place, and reads it after a while."""
    segmenter, kept = Segmenter(models('torch'), threads=1), {}
    pause = threading.Event()

    def run(image):
        kept['labels'] = segmenter(image)
        pause.wait(0.01)
        return kept['labels']

    assert wrong(run) > 0


@pytest.mark.parametrize('runtime', list(RUNTIMES))
def test_a_pickled_segmenter_is_the_same(models, runtime, tmp_path, monkeypatch):
    pytest.importorskip(RUNTIMES[runtime].needs)
    path = models(runtime)
    monkeypatch.chdir(path.parent)
    segmenter = Segmenter(path.name, runtime, threads=1)
    monkeypatch.chdir(tmp_path)  # a relative path stays right
    with pytest.raises(FileNotFoundError):
        Segmenter(path.name, runtime)
    copy = pickle.loads(pickle.dumps(segmenter))
    assert type(copy.network) is type(segmenter.network)
    assert copy.network.threads == 1
    assert np.array_equal(copy(IMAGES[0]), segmenter(IMAGES[0]))


def test_options_of_a_runtime_survive_pickling(models):
    pytest.importorskip('MNN')
    loaded = pickle.loads(pickle.dumps(load_runtime(models('mnn'), 'mnn', 1, winograd_level=1)))
    assert loaded._options == dict(winograd_level=1)


def label(segmenter, images):
    return [segmenter(image) for image in images]


@pytest.mark.slow
@pytest.mark.parametrize('runtime', list(RUNTIMES))
def test_spawned_workers_take_a_segmenter(models, runtime):
    pytest.importorskip(RUNTIMES[runtime].needs)
    segmenter = Segmenter(models(runtime), runtime, threads=1)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        found = pool.apply(label, (segmenter, IMAGES[:2]))
    assert np.array_equal(found, label(segmenter, IMAGES[:2]))
