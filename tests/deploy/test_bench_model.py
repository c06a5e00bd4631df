"""The timing of exported models: the figures by hand, and calls that overlap."""

import json
import sys
import threading
import time

import pytest

from mmseg_repvgg.commands import bench_model as command
from mmseg_repvgg.deploy.bench_model import Timing, bench_model, percentile
from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import FOUR, FakeNetwork, by_position


def segmenter_of(seconds=0.0, **info):
    """Its network sleeps, as a runtime that computes elsewhere."""
    busy, most, lock = [], [0], threading.Lock()

    def run(images):
        with lock:
            busy.append(1)
            most[0] = max(most[0], len(busy))
        time.sleep(seconds)
        with lock:
            busy.pop()
        return by_position(images)

    segmenter = Segmenter(FakeNetwork(run, **FOUR, **info))
    segmenter.most_at_once = most
    return segmenter


@pytest.mark.parametrize(
    ('values', 'percent', 'expected'),
    [
        ([3, 1, 2], 50, 2),
        ([4, 1, 3, 2], 50, 2),
        (range(1, 101), 95, 95),
        (range(1, 21), 95, 19),
        ([7], 95, 7),
    ],
)
def test_percentiles_by_hand(values, percent, expected):
    assert percentile(values, percent) == expected


def test_latency_and_throughput():
    """Sleeps of 20 ms: two callers overlap, and are twice as fast together."""
    one = bench_model(segmenter_of(0.02), seconds=0.1)
    assert 0.02 <= one.p50 <= one.p95 < 0.1
    assert one.calls >= 5
    assert 15 < one.images_per_second <= 50
    segmenter = segmenter_of(0.02)
    two = bench_model(segmenter, callers=2, seconds=0.1)
    assert segmenter.most_at_once == [2]
    assert two.images_per_second > 1.4 * one.images_per_second


def test_batches_and_sizes():
    segmenter = segmenter_of()
    timing = bench_model(segmenter, (16, 20), batch=3, seconds=0.01)
    assert {images.shape for images in segmenter.network.inputs} == {(3, 3, 8, 12)}
    assert timing.images_per_second > 0
    assert (timing.size, timing.batch) == ((16, 20), 3)


def test_the_text():
    timing = Timing((8, 12), 2, 1, 10, 0.5, 0.1, 0.25, 20.0)
    assert str(timing).splitlines() == [
        '10 calls by 1 caller, 2 images of 8x12 each; first call 500 ms',
        'latency of a call: p50 100 ms, p95 250 ms',
        'throughput: 20 images/s',
    ]


@pytest.mark.parametrize(
    ('options', 'text'),
    [
        (dict(size=(0, 5)), r'size=\(0, 5\) must be \(height, width\)'),
        (dict(batch=0), 'batch=0 must be an integer, at least 1'),
        (dict(callers=0), 'callers=0 must be an integer, at least 1'),
        (dict(seconds=-1), 'seconds=-1 must be a finite number above 0'),
    ],
)
def test_wrong_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        bench_model(segmenter_of(), **options)


def test_an_error_of_the_model_is_not_hidden():
    with pytest.raises(ValueError, match='smaller than the windows'):
        bench_model(segmenter_of(stride=(4, 4)), (4, 4), callers=2)


def test_the_command_prints_json(monkeypatch, capsys):
    given = []

    def load(*args, **options):
        given.append((args, options))
        return segmenter_of()

    monkeypatch.setattr(command, 'Segmenter', load)
    arguments = ['m.onnx', '--threads', '2', '--batch', '3', '--seconds', '0.01', '--json']
    monkeypatch.setattr(sys, 'argv', ['bench-model', *arguments])
    command.main()
    assert given == [(('m.onnx', None, 2, 3), dict(device=None))]
    assert json.loads(capsys.readouterr().out)['batch'] == 3
