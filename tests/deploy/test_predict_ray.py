"""predict --engine ray: its options, what it writes and skips, and real Ray with killed workers."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_repvgg.commands import predict as command
from mmseg_repvgg.deploy.predict import predict
from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import FakeNetwork, brightest_channel, draw

PROJECT = Path(__file__).parents[2]
NOT_HERE = "not installed: pip install 'mmseg-repvgg[ray]'"


def error_of(monkeypatch, *options):
    """What the command says before it ends."""
    monkeypatch.setattr(sys, 'argv', ['predict', 'm.onnx', 'images', 'out', *options])
    with pytest.raises(SystemExit) as end:
        command.main()
    return end.value.code


@pytest.mark.parametrize(
    ('engine', 'options'),
    [
        ('loop', ('--workers', '2')),
        ('loop', ('--address', 'auto')),
        ('ray', ('--opacity', '0.5')),
        ('ray', ('--no-legend',)),
        ('ray', ('--overwrite',)),
    ],
)
def test_options_without_effect_are_refused(monkeypatch, engine, options):
    text = error_of(monkeypatch, '--engine', engine, *options)
    assert (
        text == f'predict: error: {options[0]} has no effect with --engine {engine}: leave it out'
    )


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(command, 'find_spec', lambda name: None)
    text = error_of(monkeypatch, '--engine', 'ray')
    assert text.startswith('predict: error: --engine ray needs ray and pyarrow')
    assert text.endswith("pip install 'mmseg-repvgg[ray]'")


# What is written, with the workers' code in this process.


@pytest.fixture
def engine(monkeypatch):
    """predict_ray, whose tasks run here; ``lost`` are images whose process would die."""
    pytest.importorskip('pyarrow', reason=f'pyarrow is {NOT_HERE}')
    import pyarrow as pa

    from mmseg_repvgg.deploy import predict_ray as engine

    def batches(job, names, images_per_task):
        attempts = engine.Attempts()
        labeller = engine.Labeller(*job.labeller, attempts.begin)
        for start in range(0, len(names), images_per_task):
            task = names[start : start + images_per_task]
            engine.tasks.append(task)
            while engine.lost & set(task) and attempts.begin(task[0]) < 3:
                pass  # its process dies
            for _ in range(1 + engine.twice):
                yield labeller(pa.table({'item': task}))

    monkeypatch.setattr(engine._Job, '_batches', batches)
    monkeypatch.setattr(engine, 'task_size', lambda images, workers: 16)
    monkeypatch.setattr(engine, 'start_ray', lambda workers: nullcontext(1))
    for name, value in dict(tasks=[], lost=set(), twice=False).items():
        monkeypatch.setattr(engine, name, value, raising=False)
    return engine


@pytest.fixture
def segmenter():
    return Segmenter(FakeNetwork(brightest_channel, size=(24, 36)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for index, name in enumerate(('a.png', 'b.jpg', 'b.png', 'sub/a.PNG', '.hidden.png')):
        cv2.imwrite(str(folder / name), np.roll(draw(24, 36), index, 1))
    (folder / 'notes.txt').write_text('no image')
    return folder


NAMES = ['a.png', 'b.jpg', 'b.png', 'sub/a.PNG']


def shares(out):
    from pyarrow import parquet

    return parquet.read_table(out / 'shares').sort_by('image').to_pydict()


def labels_in(out):
    found = (path for path in (out / 'labels').rglob('*') if path.is_file())
    return sorted(path.relative_to(out / 'labels').as_posix() for path in found)


def failures_in(out):
    with (out / 'failures.csv').open(newline='') as stream:
        return {row['image']: row['reason'] for row in csv.DictReader(stream)}


@pytest.mark.parametrize('label_format', ['palette', 'indices'])
def test_labels_are_those_of_the_loop(engine, segmenter, folder, tmp_path, label_format):
    out, loop = tmp_path / 'out', tmp_path / 'loop'
    report = engine.predict_ray(segmenter, str(folder), str(out), save_labels=label_format)
    plain = predict(segmenter, folder, loop, save_labels=label_format)
    assert labels_in(out) == [f'{name}.png' for name in NAMES]
    for name, other in zip(NAMES, ['a', 'b.jpg', 'b.png', 'sub/a'], strict=True):
        found, expected = Image.open(out / f'labels/{name}.png'), Image.open(loop / f'{other}.png')
        assert found.mode == expected.mode
        assert np.array_equal(found, expected)
    assert (report.done, report.failures, report.pixels) == (4, {}, plain.pixels)
    lines = str(plain).splitlines()
    assert str(report).splitlines() == [*lines[:-1], f'results: {out}']


def test_the_table_has_a_row_per_image(engine, segmenter, folder, tmp_path):
    image = np.zeros((24, 36, 3), np.uint8)
    image[..., 0] = 200  # blue
    image[:6, :, 2] = 255  # a quarter of the rows is red
    cv2.imwrite(str(folder / 'a.png'), image)
    engine.predict_ray(segmenter, str(folder), str(tmp_path / 'out'), save_labels='none')
    table = shares(tmp_path / 'out')
    assert table['image'] == NAMES
    assert (table['height'], table['width']) == ([24] * 4, [36] * 4)
    row = [table[f'share_{name}'][0] for name in ('blue', 'green', 'red')]
    assert row == [0.75, 0, 0.25]
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == ['settings.json', 'shares']


def test_failures_are_listed_and_tried_again(engine, segmenter, folder, tmp_path):
    out = tmp_path / 'out'
    (folder / 'empty.png').touch()
    (folder / 'broken.png').write_bytes(b'nothing')
    report = engine.predict_ray(segmenter, str(folder), str(out))
    assert (report.done, sorted(report.failures)) == (4, ['broken.png', 'empty.png'])
    assert failures_in(out) == report.failures
    assert 'failed: broken.png: it is not an image that OpenCV reads' in str(report)
    assert shares(out)['image'] == NAMES
    cv2.imwrite(str(folder / 'broken.png'), draw(24, 36))
    (folder / 'empty.png').unlink()
    report = engine.predict_ray(segmenter, str(folder), str(out), resume=True)
    assert (report.done, report.skipped, report.failures) == (1, 4, {})
    assert shares(out)['image'] == sorted([*NAMES, 'broken.png'])
    assert not (out / 'failures.csv').exists()


def test_many_failures_are_cut_short_on_the_terminal(engine):
    failures = {f'{index}.png': 'damaged' for index in range(21)}
    lines = str(engine.LargeReport('out', failures=failures)).splitlines()
    assert lines[19:] == [
        'failed: 19.png: damaged',
        '... all are in out/failures.csv',
        '0 done, 21 failed',
        'results: out',
    ]


def test_what_is_done_is_skipped(engine, segmenter, folder, tmp_path):
    out = tmp_path / 'out'
    engine.predict_ray(segmenter, str(folder), str(out))
    engine.tasks.clear()
    for name in ('c.png', 'sub/b.png'):
        cv2.imwrite(str(folder / name), draw(24, 36))
    report = engine.predict_ray(segmenter, str(folder), str(out), resume=True)
    assert engine.tasks == [['c.png', 'sub/b.png']]
    assert (report.done, report.skipped) == (2, 4)
    assert shares(out)['image'] == sorted([*NAMES, 'c.png', 'sub/b.png'])
    report = engine.predict_ray(segmenter, str(folder), str(out), resume=True)
    assert str(report) == f'0 done, 0 failed, 6 skipped (done earlier)\nresults: {out}'
    assert len(engine.tasks) == 1


def test_an_interrupted_run_keeps_its_rows(engine, segmenter, folder, tmp_path, monkeypatch):
    out = tmp_path / 'out'
    monkeypatch.setattr(engine, 'task_size', lambda images, workers: 1)
    whole = engine._Job._take

    def interrupted(job, row):
        if row['image'] == 'b.png':
            raise KeyboardInterrupt
        whole(job, row)

    monkeypatch.setattr(engine._Job, '_take', interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.predict_ray(segmenter, str(folder), str(out))
    assert shares(out)['image'] == ['a.png', 'b.jpg']
    monkeypatch.setattr(engine._Job, '_take', whole)
    report = engine.predict_ray(segmenter, str(folder), str(out), resume=True)
    assert (report.done, report.skipped) == (2, 2)
    assert shares(out)['image'] == NAMES


def test_a_part_is_written_each_minute(engine, segmenter, folder, tmp_path, monkeypatch):
    monkeypatch.setattr('mmseg_repvgg.deploy.share_table.SECONDS_PER_PART', 0)
    engine.predict_ray(segmenter, str(folder), str(tmp_path / 'out'))
    assert len(list((tmp_path / 'out' / 'shares').iterdir())) == 4
    assert shares(tmp_path / 'out')['image'] == NAMES


def test_rows_that_come_twice_are_taken_once(engine, segmenter, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, 'twice', True)
    report = engine.predict_ray(segmenter, str(folder), str(tmp_path / 'out'))
    assert report.done == 4
    assert shares(tmp_path / 'out')['image'] == NAMES


def test_an_image_that_kills_takes_no_other_with_it(engine, segmenter, folder, tmp_path):
    engine.lost = {'b.jpg'}
    report = engine.predict_ray(segmenter, str(folder), str(tmp_path / 'out'))
    assert engine.tasks == [NAMES, *([name] for name in NAMES)]
    assert report.failures == {'b.jpg': 'the process that segmented it died 3 times'}
    assert shares(tmp_path / 'out')['image'] == ['a.png', 'b.png', 'sub/a.PNG']


def test_many_images_are_given_to_ray_in_parts(engine, segmenter, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, 'IMAGES_OF_DATASET', 3)
    report = engine.predict_ray(segmenter, str(folder), str(tmp_path / 'out'))
    assert engine.tasks == [NAMES[:3], NAMES[3:]]
    assert (report.done, shares(tmp_path / 'out')['image']) == (4, NAMES)


def test_tasks_are_small_enough_for_all_workers():
    pytest.importorskip('pyarrow', reason=f'pyarrow is {NOT_HERE}')
    from mmseg_repvgg.deploy.predict_ray import task_size

    found = [task_size(n, 2) for n in (1, 15, 32, 400, 2000, 100_000)]
    assert found == [1, 1, 2, 25, 64, 64]


def test_a_full_disk_ends_the_run(engine, segmenter, folder, tmp_path, monkeypatch):
    def write(folder, name, content):
        if name == 'labels/b.jpg.png':
            raise OSError(28, 'No space left on device')
        whole(folder, name, content)

    whole = engine.Folder.write
    monkeypatch.setattr(engine.Folder, 'write', write)
    with pytest.raises(OSError, match=r'b\.jpg: .*No space left on device'):
        engine.predict_ray(segmenter, str(folder), str(tmp_path / 'out'))
    assert shares(tmp_path / 'out')['image'] == ['a.png']


def test_mistakes_are_named_before_anything_is_done(engine, segmenter, folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    full = tmp_path / 'full'
    full.mkdir()
    (full / 'mine.txt').touch()
    out = tmp_path / 'out'
    for source, target, text in (
        (tmp_path / 'none', out, 'none not found; give a folder'),
        (folder / 'a.png', out, r'a\.png is not a folder'),
        (tmp_path / 'empty', out, 'empty holds no images'),
        (folder, folder / 'out', 'lies in the folder of the images'),
        (folder, full, 'full is not empty'),
        ('nowhere://x', out, 'nowhere://x cannot be opened by pyarrow'),
    ):
        with pytest.raises((ValueError, OSError), match=text):
            engine.predict_ray(segmenter, str(source), str(target))
    for wrong in (dict(count=0), dict(threads=0), dict(count=2.5)):
        with pytest.raises(ValueError, match='must be an integer, at least 1'):
            engine.Workers(**wrong)
    assert not out.exists()
    assert not engine.tasks


def test_an_earlier_run_is_continued_only_with_the_same_settings(
    engine, segmenter, folder, tmp_path
):
    out = str(tmp_path / 'out')
    engine.predict_ray(segmenter, str(folder), out)
    with pytest.raises(ValueError, match='continue it with --resume'):
        engine.predict_ray(segmenter, str(folder), out)
    other = Segmenter(FakeNetwork(brightest_channel, size=(24, 36), model_sha256='1' * 64))
    with pytest.raises(ValueError, match="with model='0000"):
        engine.predict_ray(other, str(folder), out, resume=True)
    with pytest.raises(ValueError, match="save_labels='palette', not 'none'"):
        engine.predict_ray(segmenter, str(folder), out, save_labels='none', resume=True)
    with pytest.raises(ValueError, match='with images='):
        engine.predict_ray(segmenter, str(folder / 'sub'), out, resume=True)
    assert len(engine.tasks) == 1


def test_workers_share_the_cores(engine, monkeypatch):
    monkeypatch.setattr('mmseg_repvgg.deploy.ray_workers.num_cores', lambda: 8)
    sharing = engine.Workers.sharing_cores
    found = [sharing(2, None), sharing(3, None), sharing(16, None), sharing(2, 1)]
    assert [(w.count, w.threads) for w in found] == [(2, 4), (3, 2), (16, 1), (2, 1)]
    assert sharing(None, None) == engine.Workers(None, 1)
    assert sharing(2, None, 'auto') == engine.Workers(2, 1, 'auto')


def test_classes_of_one_name_have_columns_of_their_own(engine, folder, tmp_path):
    network = FakeNetwork(
        brightest_channel, size=(24, 36), classes=('a', 'image', 'a'), palette=((0, 0, 0),) * 3
    )
    engine.predict_ray(Segmenter(network), str(folder), str(tmp_path / 'out'))
    table = shares(tmp_path / 'out')
    assert [*table][3:] == ['share_a_0', 'share_image', 'share_a_2']


def test_other_storages_of_pyarrow(engine, segmenter, folder):
    """fsspec's, in memory: files there are written under another name first."""
    fsspec = pytest.importorskip('fsspec')
    memory = fsspec.filesystem('memory')
    memory.put(str(folder), '/images', recursive=True)
    try:
        report = engine.predict_ray(segmenter, 'fsspec+memory://images', 'fsspec+memory://out')
        assert report.done == 4
        found = memory.find('/out/labels')
        assert found == [f'/out/labels/{name}.png' for name in NAMES]
        resumed = engine.predict_ray(
            segmenter, 'fsspec+memory://images', 'fsspec+memory://out', resume=True
        )
        assert resumed.skipped == 4
    finally:
        memory.rm('/', recursive=True)


def test_nothing_heavy_is_imported():
    pytest.importorskip('pyarrow', reason=f'pyarrow is {NOT_HERE}')
    code = (
        'import sys, mmseg_repvgg.deploy.predict_ray; '
        'print(sorted({"torch", "mmengine", "mmcv", "mmseg", "ray"} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout == '[]\n', done.stderr


# With real Ray.


def workers_of(process):
    """The ids of the processes that segment."""
    import psutil

    children = psutil.Process(process).children(recursive=True)
    return [c.pid for c in children if c.name().startswith('ray::') and is_labeller(c)]


def is_labeller(process):
    return 'Labeller' in ' '.join(process.cmdline())


@pytest.fixture
def ray():
    for name in ('ray', 'pyarrow', 'psutil'):
        pytest.importorskip(name, reason=f'{name} is {NOT_HERE}')


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(ray, segmentor, tmp_path):
    pytest.importorskip('onnxruntime')
    from mmseg_repvgg.deploy.export import Options, export

    model = tmp_path / 'm.onnx'
    export(segmentor[0], segmentor[2], model, options=Options(dynamic_size=True))
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    for index in range(400):
        cv2.imwrite(str(images / f'{index:03}.png'), np.roll(draw(64, 128), index, 1))
    (images / 'broken.png').write_bytes(b'nothing')
    arguments = [model, images, out, '--engine', 'ray', '--workers', '2', '--threads', '1']
    process = subprocess.Popen(
        [sys.executable, '-m', 'mmseg_repvgg', 'predict', *map(str, arguments)],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None and (not out.exists() or len(labels_in(out)) < 40):
            time.sleep(0.02)
        killed = workers_of(process.pid)
        assert len(killed) == 2
        os.kill(killed[0], signal.SIGKILL)
        before = len(labels_in(out))
        text, errors = process.communicate(timeout=300)
    finally:
        process.kill()
    assert before < 380, 'it was killed too late'
    assert process.returncode == 1, text + errors
    assert '400 done, 1 failed' in text
    assert list(failures_in(out)) == ['broken.png']
    assert shares(out)['image'] == [f'{index:03}.png' for index in range(400)]
    assert [name for name in labels_in(out) if '/.' not in f'/{name}'] == [
        f'{index:03}.png.png' for index in range(400)
    ]
    segmenter = Segmenter(str(model), threads=1)
    for index in range(0, 400, 50):
        labels = segmenter(images / f'{index:03}.png')
        assert np.array_equal(Image.open(out / f'labels/{index:03}.png.png'), labels)


def dies_of_white(images):
    if images.min() == 255:
        os._exit(1)
    return images.copy()


@pytest.mark.slow
def test_an_image_that_kills_its_process_is_a_failure(ray, folder, tmp_path):
    from mmseg_repvgg.deploy.predict_ray import predict_ray
    from mmseg_repvgg.deploy.ray_workers import Workers

    cv2.imwrite(str(folder / 'white.png'), np.full((24, 36, 3), 255, np.uint8))
    segmenter = Segmenter(FakeNetwork(dies_of_white, size=(24, 36)))
    report = predict_ray(segmenter, str(folder), str(tmp_path / 'out'), Workers(2))
    assert (report.done, [*report.failures]) == (4, ['white.png'])
    assert shares(tmp_path / 'out')['image'] == NAMES


class CannotBeLoaded(FakeNetwork):
    def __reduce__(self):
        return load, ()


def load():
    raise ValueError('the model is not on this machine')


@pytest.mark.slow
def test_a_worker_that_cannot_load_the_model_ends_the_run(ray, folder, tmp_path):
    from mmseg_repvgg.deploy.predict_ray import predict_ray
    from mmseg_repvgg.deploy.ray_workers import Workers

    segmenter = Segmenter(CannotBeLoaded(brightest_channel, size=(24, 36)))
    with pytest.raises(RuntimeError, match='Ray stopped: .*the model is not on this machine'):
        predict_ray(segmenter, str(folder), str(tmp_path / 'out'), Workers(2))


@pytest.mark.parametrize('form', ['127.0.0.1:{}', 'ray://localhost:{}', '[::1]:{}'])
def test_an_address_must_answer(form):
    from mmseg_repvgg.deploy.ray_workers import _check_that_it_answers

    for unchecked in (None, 'auto', 'local', 'host'):
        _check_that_it_answers(unchecked)
    with socket.create_server(('127.0.0.1', 0)) as server:
        address = form.format(server.getsockname()[1])
        if '::1' not in form:
            _check_that_it_answers(address)
    with pytest.raises(OSError):
        _check_that_it_answers(address)


@pytest.mark.slow
def test_a_cluster_that_is_not_there(ray, folder, tmp_path):
    from mmseg_repvgg.deploy.predict_ray import predict_ray
    from mmseg_repvgg.deploy.ray_workers import Workers

    segmenter = Segmenter(FakeNetwork(brightest_channel, size=(24, 36)))
    workers = Workers(2, address='127.0.0.1:1')
    with pytest.raises(RuntimeError, match=r'Ray cannot be used at 127\.0\.0\.1:1'):
        predict_ray(segmenter, str(folder), str(tmp_path / 'out'), workers)
    assert json.loads((tmp_path / 'out' / 'settings.json').read_text())['save_labels'] == 'palette'
