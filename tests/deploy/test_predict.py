"""Images, folders and videos in, label maps and overlays out; and the tool as a user calls it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mmseg_repvgg.deploy import video
from mmseg_repvgg.deploy.predict import predict
from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import FakeNetwork, brightest_channel

PROJECT = Path(__file__).parents[2]


def blocks(seed, height=24, width=36):
    """An image of flat patches of 12 pixels."""
    channel = np.random.default_rng(seed).integers(0, 3, (height // 12, width // 12))
    image = np.full((height, width, 3), 40, np.uint8)
    for index in range(3):
        image[channel.repeat(12, 0).repeat(12, 1) == index, index] = 220
    return image


CENTRES = np.s_[6::12, 6::12]  # of the patches, away from what JPEG and a video codec blur


@pytest.fixture
def segmenter():
    return Segmenter(FakeNetwork(brightest_channel, stride=(8, 12)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'images'
    (folder / 'sub').mkdir(parents=True)
    for seed, name in enumerate(('a.png', 'b.jpg', 'b.png', 'sub/a.PNG', '.hidden.png')):
        cv2.imwrite(str(folder / name), blocks(seed))
    (folder / 'notes.txt').write_text('no image')
    return folder


def written(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob('*') if path.is_file())


def test_a_folder(segmenter, folder, tmp_path):
    (folder / 'broken.png').write_bytes(b'nothing')
    out = tmp_path / 'out'
    report = predict(segmenter, folder, out)
    assert written(out) == [
        'a.png',
        'a_overlay.jpg',
        'b.jpg.png',
        'b.jpg_overlay.jpg',
        'b.png.png',
        'b.png_overlay.jpg',
        'sub/a.png',
        'sub/a_overlay.jpg',
    ]
    for seed, name in ((0, 'a'), (1, 'b.jpg'), (2, 'b.png'), (3, 'sub/a')):
        image = blocks(seed)
        labels = np.array(Image.open(out / f'{name}.png'))
        assert np.array_equal(labels, image.argmax(2))
        painted = cv2.imread(str(out / f'{name}_overlay.jpg')).astype(int)[:24, :36]
        assert np.abs(painted - segmenter.overlay(image, labels))[CENTRES].max() < 10
    assert [path.relative_to(out).as_posix() for path in report.written] == [
        'a_overlay.jpg',
        'b.jpg_overlay.jpg',
        'b.png_overlay.jpg',
        'sub/a_overlay.jpg',
    ]
    assert len(report.failures) == 1
    assert str(folder / 'broken.png') in report.failures[0]
    shares = sum(np.bincount(blocks(seed).argmax(2).ravel(), minlength=3) for seed in range(4))
    assert report.pixels == dict(zip(('blue', 'green', 'red'), shares, strict=True))
    *_, last, done, where = str(report).splitlines()
    name = ('blue', 'green', 'red')[shares.argmin()]
    assert last.split() == [name, f'{100 * shares.min() / (4 * 24 * 36):.2f}', '%']
    assert (done, where) == ('4 done, 1 failed', f'results: {out}')


def test_odd_names(segmenter, tmp_path):
    names = ['a b', 'ü 日本', 'back\\slash', 'new\nline', '-dash', '%s{x}', 'q\'uo"te', 'dot.']
    folder = tmp_path / 'im ages\n'
    folder.mkdir()
    content = cv2.imencode('.png', blocks(0))[1].tobytes()
    for name in names:
        (folder / f'{name}.png').write_bytes(content)
    latin = Path(os.fsdecode(b'l\xe9.png'))  # not UTF-8
    (folder / latin).write_bytes(content)
    report = predict(segmenter, folder, tmp_path / 'o ut\n')
    assert len(report.written) == len(names) + 1
    assert not report.failures
    for name in (*names, latin.stem):
        for result in (f'{name}.png', f'{name}_overlay.jpg'):
            assert (tmp_path / 'o ut\n' / result).is_file(), result


def test_links_that_lead_in_a_circle_or_nowhere(segmenter, folder, tmp_path):
    (folder / 'again').symlink_to(folder)
    (folder / 'gone.png').symlink_to('nowhere')
    assert len(predict(segmenter, folder, tmp_path / 'out').written) == 4


def test_the_error_output_may_be_closed(segmenter, folder, tmp_path, monkeypatch):
    """As in a service: Python then has no ``sys.stderr``."""
    monkeypatch.setattr(sys, 'stderr', None)
    assert len(predict(segmenter, folder, tmp_path / 'out').written) == 4
    make_video(tmp_path / 'street.avi', 2)
    assert predict(segmenter, tmp_path / 'street.avi', tmp_path / 'out').written


@pytest.mark.parametrize('source', ['images', 'images/a.png', 'street.avi'])
def test_where_nothing_can_be_written_no_image_is_tried(segmenter, folder, tmp_path, source):
    make_video(tmp_path / 'street.avi', 2)
    out = folder / 'notes.txt' / 'out'
    with pytest.raises(NotADirectoryError, match='the folder .*out cannot be made: Not'):
        predict(segmenter, tmp_path / source, out)
    assert not segmenter.network.inputs


def test_a_list_of_images_is_no_image(segmenter, folder, tmp_path):
    (tmp_path / 'list.txt').write_text(str(folder / 'a.png'))
    (failure,) = predict(segmenter, tmp_path / 'list.txt', tmp_path / 'out').failures
    assert 'list.txt is not an image that OpenCV reads' in failure


def test_results_in_the_folder_are_not_taken_for_images(segmenter, folder):
    for _ in range(2):
        assert len(predict(segmenter, folder, folder / 'out').written) == 4


def test_results_of_another_folder_in_the_source_are_not_taken_for_images(segmenter, folder):
    predict(segmenter, folder, folder / 'out1')
    report = predict(segmenter, folder, folder / 'out2')
    assert len(report.written) == 4
    assert '8 results of an earlier call' in str(report)


def test_the_folder_above_the_images(segmenter, folder):
    assert len(predict(segmenter, folder, folder.parent).written) == 4
    assert np.array_equal(np.array(Image.open(folder.parent / 'a.png')), blocks(0).argmax(2))


def test_no_image_is_overwritten(segmenter, tmp_path):
    """``x/x/a.png`` would become ``x/a.png``, which is an image too."""
    inner = tmp_path / 'x' / 'x'
    inner.mkdir(parents=True)
    for seed, path in enumerate((inner / 'a.png', inner / 'b.png', inner.parent / 'a.png')):
        cv2.imwrite(str(path), blocks(seed))
    before = (inner.parent / 'a.png').read_bytes()
    for _ in range(2):  # results are overwritten
        report = predict(segmenter, inner, inner.parent)
        assert [path.name for path in report.written] == ['b_overlay.jpg']
        assert 'a.png would overwrite a file that is not the' in report.failures[0]
    assert (inner.parent / 'a.png').read_bytes() == before
    assert not (inner.parent / 'a_overlay.jpg').exists()


def test_all_images_have_results_of_their_own(segmenter, tmp_path):
    """The label map of ``a.jpg.png``, alone with that stem, would be that of ``a.jpg``."""
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in ('a.jpg', 'a.png', 'a.jpg.png', 'A.bmp'):
        cv2.imwrite(str(folder / name), blocks(0))
    report = predict(segmenter, folder, tmp_path / 'out')
    assert len(set(report.written)) == 4
    names = [name.lower() for name in written(tmp_path / 'out')]
    assert len(set(names)) == len(names) == 8


def test_an_image_that_cannot_be_segmented_does_not_end_the_run(folder, tmp_path):
    cv2.imwrite(str(folder / 'a.png'), blocks(0, 48))
    long = 'z' * 236 + '.png'  # with .png or _overlay.jpg a name of at most 255 bytes
    cv2.imwrite(str(folder / long), blocks(1))
    cv2.imwrite(str(folder / ('z' * 250 + '.png')), blocks(1))  # the overlay's is too long

    def picky(images):
        if images.shape[0] > 9:
            raise RuntimeError('out of memory')
        return images

    report = predict(
        Segmenter(FakeNetwork(picky, stride=(8, 12)), batch=100), folder, tmp_path / 'out'
    )
    assert [failure.partition(': ')[2] for failure in report.failures][:1] == ['out of memory']
    assert len(report.failures) == 2
    assert 'z' * 250 in report.failures[1]
    assert len(report.written) == 4
    assert (tmp_path / 'out' / long).is_file()


def test_a_panorama_is_wider_than_jpeg_allows(segmenter, tmp_path):
    cv2.imwrite(str(tmp_path / 'wide.png'), np.zeros((12, 66_000, 3), np.uint8))
    predict(segmenter, tmp_path / 'wide.png', tmp_path / 'out', legend=False)
    assert written(tmp_path / 'out') == ['wide.png', 'wide_overlay.png']


def test_a_single_image(segmenter, folder, tmp_path):
    report = predict(segmenter, folder / 'b.jpg', tmp_path / 'out')
    assert written(tmp_path / 'out') == ['b.png', 'b_overlay.jpg']
    assert not report.failures


def test_mistakes_are_named_before_anything_is_done(segmenter, folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    for source, out, opacity, text in (
        (folder, tmp_path / 'out', 2, 'opacity=2 must be'),
        (tmp_path / 'none', tmp_path / 'out', 0.5, 'none not found'),
        (tmp_path / 'empty', tmp_path / 'out', 0.5, 'empty holds no images'),
        (folder, folder / 'a.png', 0.5, r'a\.png is a file; give a folder'),
        (folder, folder, 0.5, 'holds the images themselves'),
        (folder / 'a.png', folder, 0.5, 'holds the images themselves'),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=text):
            predict(segmenter, source, out, opacity)
    assert not (tmp_path / 'out').exists()
    assert not segmenter.network.inputs


def make_video(path, count, rate=10.0):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), rate, (72, 48))
    assert writer.isOpened()
    for seed in range(count):
        writer.write(blocks(seed, 48, 72))
    writer.release()
    return path


def test_a_video(segmenter, tmp_path):
    source, out = make_video(tmp_path / 'street.avi', 5), tmp_path / 'out'
    report = predict(segmenter, source, out, opacity=1)
    (target,) = report.written
    assert written(out) == [target.name] == ['street_overlay.webm']
    assert str(report).endswith(f'\n1 done, 0 failed: 5 of 5 frames, without sound\nresults: {out}')
    assert report.pixels.total() == 5 * 48 * 72
    with video.read_video(target) as result:
        assert (result.rate, result.count) == (10, 5)
        frames = list(result.frames)
    assert len(frames) == video.count_frames(target) == 5
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 200)])  # BGR of blue, green, red
    for seed, frame in enumerate(frames):
        labels = blocks(seed, 48, 72).argmax(2)
        painted = frame[:48, :72][CENTRES]
        assert np.abs(painted - colours[labels[CENTRES]].astype(int)).mean() < 25


def test_without_an_encoder(segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(video, 'CODEC', 'none')
    with pytest.raises(ValueError, match='cannot write .*this OpenCV has no encoder for VP8'):
        predict(segmenter, make_video(tmp_path / 'street.avi', 2), tmp_path / 'out')
    assert written(tmp_path / 'out') == []


class LosesAFrame:
    """OpenCV's writer, which says nothing when it cannot write a frame."""

    fourcc = cv2.VideoWriter.fourcc

    def __init__(self, *args):
        self.writer, self.count = make_writer(*args), 0
        self.isOpened, self.release = self.writer.isOpened, self.writer.release

    def write(self, frame):
        self.count += 1
        if self.count != 2:
            self.writer.write(frame)


make_writer = cv2.VideoWriter


def test_frames_that_were_not_written_are_noticed(segmenter, tmp_path, monkeypatch):
    source = make_video(tmp_path / 'street.avi', 3)
    monkeypatch.setattr(cv2, 'VideoWriter', LosesAFrame)
    with pytest.raises(ValueError, match='was not written: OpenCV reads 2 of its 3 frames back'):
        predict(segmenter, source, tmp_path / 'out')
    assert written(tmp_path / 'out') == []


def test_a_video_that_fails_half_way_is_not_left(tmp_path):
    def broken(images):
        if images.min() >= 0 and broken.calls >= 8:
            raise ValueError('out of order')
        broken.calls += 1
        return images

    broken.calls = 0
    source = make_video(tmp_path / 'street.avi', 5)
    segmenter = Segmenter(FakeNetwork(broken, stride=(8, 12)))
    with pytest.raises(ValueError, match='out of order'):
        predict(segmenter, source, tmp_path / 'out')
    assert written(tmp_path / 'out') == []


def test_a_video_that_breaks_off_is_a_failure(segmenter, tmp_path):
    source = make_video(tmp_path / 'street.avi', 20)
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    report = predict(segmenter, source, tmp_path / 'out')
    assert re.search(r'avi is incomplete: \d+ of 20 frames could be read', report.failures[0])
    assert written(tmp_path / 'out') == ['street_overlay.webm']  # what there was


def test_videos_that_cannot_be_read(segmenter, tmp_path):
    (tmp_path / 'x.mp4').write_bytes(b'no video')
    with pytest.raises(ValueError, match=r'x\.mp4 is not a video that OpenCV reads'):
        predict(segmenter, tmp_path / 'x.mp4', tmp_path / 'out')
    with (
        pytest.raises(FileNotFoundError, match=r'none\.mp4 not found'),
        video.read_video(tmp_path / 'none.mp4'),
    ):
        pass


# The tool, with a runtime made up for it.

TOOL = f"""
import json, runpy, sys
from types import ModuleType
from tests.deploy.networks import FakeNetwork, brightest_channel

runtimes = sys.modules['mmseg_repvgg.deploy.runtimes'] = ModuleType('runtimes')
runtimes.load_runtime = lambda path, runtime, threads: FakeNetwork(brightest_channel)
code = 0
try:
    runpy.run_path({str(PROJECT / 'tools' / 'predict.py')!r}, run_name='__main__')
except SystemExit as end:
    code = end.code
heavy = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'matplotlib')
print(json.dumps([code, [name for name in heavy if name in sys.modules]]))
"""


def call(*args, cwd):
    """Return exit code or message, heavy modules, and the lines printed before."""
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', TOOL, *map(str, args)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(PROJECT), *sys.path])},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    return *json.loads(last), lines


def test_the_tool_imports_nothing_heavy_and_tells_success_by_its_exit_code(folder):
    code, heavy, lines = call('x.onnx', folder, 'out', '--opacity', '0.3', cwd=folder.parent)
    assert (code, heavy) == (0, [])
    assert lines[0].split() == ['class', 'pixels']
    assert lines[-2:] == ['4 done, 0 failed', 'results: out']
    assert len(written(folder.parent / 'out')) == 8
    (folder / 'broken.png').write_bytes(b'nothing')
    code, heavy, lines = call('x.onnx', folder / 'broken.png', 'bad', cwd=folder.parent)
    assert (code, heavy) == (1, [])
    assert lines[0].startswith(f'failed: {folder / "broken.png"} is not an image')
    assert lines[1:] == ['0 done, 1 failed', 'results: bad']
    make_video(folder / 'cut.avi', 20)
    whole = (folder / 'cut.avi').read_bytes()
    (folder / 'cut.avi').write_bytes(whole[: len(whole) // 2])
    code, _, lines = call('x.onnx', folder / 'cut.avi', 'bad', cwd=folder.parent)
    assert (code, lines[0].split(' is ')[1][:10]) == (1, 'incomplete')
    code, _, _ = call('x.onnx', 'nowhere', 'out', cwd=folder.parent)
    assert code == 'predict: error: nowhere not found; give an image, a folder or a video'
