"""What label maps hold, and which files predict writes again, skips or leaves alone."""

import os

import cv2
import numpy as np
import pytest
from cityscapesscripts.helpers.labels import trainId2label
from mmseg.datasets.transforms import LoadAnnotations
from PIL import Image

from mmseg_repvgg.deploy.predict import predict
from mmseg_repvgg.deploy.result_files import CITYSCAPES_IDS, LABEL_FORMATS, has_mark
from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import INFO, FakeNetwork, brightest_channel, draw

CITYSCAPES = tuple(trainId2label[i].name for i in range(19))


@pytest.fixture
def segmenter():
    return Segmenter(FakeNetwork(brightest_channel, size=(24, 36)))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    for name in ('a.png', 'b.jpg'):
        cv2.imwrite(str(folder / name), draw(24, 36))
    return folder


def columns(classes):
    """A network whose label is the column."""

    def network(images):
        count, _, height, width = images.shape
        planes = np.arange(classes)[:, None, None] == np.arange(width) % classes
        return np.broadcast_to(planes, (count, classes, height, width)).astype(np.float32)

    names = CITYSCAPES if classes == 19 else tuple(map(str, range(classes)))
    colours = tuple((i % 256, i // 256, 99) for i in range(classes))
    return Segmenter(FakeNetwork(network, classes=names, palette=colours, size=(24, 36)))


def label_map(segmenter, folder, label_format):
    out = folder.parent / label_format
    report = predict(segmenter, folder / 'a.png', out, save_labels=label_format)
    assert not report.failures
    return out / 'a.png'


def test_a_palette_reads_back_as_indices(segmenter, folder):
    path = label_map(segmenter, folder, 'palette')
    labels = draw(24, 36).argmax(2)
    image = Image.open(path)
    assert image.mode == 'P'
    assert np.array_equal(np.array(image), labels)
    assert image.getpalette()[:9] == [*(0, 0, 255), *(0, 255, 0), *(200, 0, 0)]
    loaded = LoadAnnotations()(dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[]))
    assert np.array_equal(loaded['gt_seg_map'], labels)
    # what docs/deploy.md warns of
    colours = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(colours, np.array(INFO['palette'])[labels][:, :, ::-1])


def test_indices(segmenter, folder):
    labels = cv2.imread(str(label_map(segmenter, folder, 'indices')), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8
    assert np.array_equal(labels, draw(24, 36).argmax(2))


@pytest.mark.parametrize('label_format', ['palette', 'indices'])
def test_more_classes_than_a_palette_holds(folder, label_format):
    network = columns(300)
    wide = cv2.imencode('.png', draw(24, 300))[1]
    (folder / 'a.png').write_bytes(wide.tobytes())
    network.network.info.__dict__.update(size=(24, 300))
    labels = cv2.imread(str(label_map(network, folder, label_format)), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16
    assert np.array_equal(labels[0], np.arange(300))


def test_ids_of_cityscapes(folder):
    path = label_map(columns(19), folder, 'cityscapes-ids')
    labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint8
    assert labels[0].tolist() == [trainId2label[i % 19].id for i in range(36)]


def test_ids_of_cityscapes_need_its_classes(segmenter, folder, tmp_path):
    reordered = Segmenter(FakeNetwork(columns(19).network.function, classes=CITYSCAPES[::-1]))
    assert tuple(CITYSCAPES_IDS) == CITYSCAPES
    for model, text in ((segmenter, 'are blue, green, red: use'), (reordered, 'are bicycle, ')):
        with pytest.raises(ValueError, match=f'needs a model with the 19 classes .*{text}'):
            predict(model, folder, tmp_path / 'out', save_labels='cityscapes-ids')
    with pytest.raises(ValueError, match="save_labels='ids' must be one of palette, indices"):
        predict(segmenter, folder, tmp_path / 'out', save_labels='ids')
    assert not (tmp_path / 'out').exists()


def test_no_label_maps(segmenter, folder, tmp_path):
    for _ in range(2):  # overlays alone are recognised as results
        report = predict(segmenter, folder, tmp_path / 'out', save_labels='none')
        assert len(report.written) == 2
    assert sorted(path.name for path in (tmp_path / 'out').iterdir()) == [
        'a_overlay.jpg',
        'b_overlay.jpg',
    ]


def test_no_legend(segmenter, folder, tmp_path):
    predict(segmenter, folder, tmp_path / 'with')
    predict(segmenter, folder, tmp_path / 'without', legend=False)
    shapes = [cv2.imread(str(tmp_path / n / 'b_overlay.jpg')).shape for n in ('with', 'without')]
    assert shapes[1] == (24, 36, 3)
    assert shapes[0][0] > 24


# Again


def test_resume_skips_what_is_done(segmenter, folder, tmp_path):
    out = tmp_path / 'out'
    predict(segmenter, folder, out)
    calls = len(segmenter.network.inputs)
    report = predict(segmenter, folder, out, resume=True)
    assert (report.skipped, report.written) == (2, [])
    assert str(report) == f'0 done, 0 failed, 2 skipped (done earlier)\nresults: {out}'
    assert len(segmenter.network.inputs) == calls
    assert len(predict(segmenter, folder, out).written) == 2  # without resume


@pytest.mark.parametrize('label_format', LABEL_FORMATS)
def test_resume_of_every_label_format(folder, tmp_path, label_format):
    for skipped in (0, 2):
        report = predict(
            columns(19), folder, tmp_path / 'out', save_labels=label_format, resume=True
        )
        assert report.skipped == skipped


def other_model():
    return Segmenter(FakeNetwork(brightest_channel, size=(24, 36), model_sha256='1' * 64))


@pytest.mark.parametrize(
    'change', ['newer image', 'no overlay', 'no labels', 'other model', 'other option']
)
def test_resume_does_again_what_is_not_current(segmenter, folder, tmp_path, change):
    out, options = tmp_path / 'out', {}
    predict(segmenter, folder, out, opacity=0.5)
    if change == 'newer image':
        later = (out / 'a.png').stat().st_mtime + 10
        os.utime(folder / 'a.png', (later, later))
    elif change == 'no overlay':
        (out / 'a_overlay.jpg').unlink()
    elif change == 'no labels':
        (out / 'a.png').unlink()
    elif change == 'other model':
        segmenter = other_model()
    else:
        options = dict(opacity=0.55)
    report = predict(segmenter, folder, out, resume=True, **options)
    everything = change in ('other model', 'other option')
    assert [path.name for path in report.written] == ['a_overlay.jpg', 'b_overlay.jpg'][
        : 1 + everything
    ]
    assert report.skipped == 1 - everything
    assert not report.failures


@pytest.mark.parametrize('name', ['a.png', 'a_overlay.jpg'])
@pytest.mark.parametrize('resume', [False, True])
def test_a_file_of_the_user_is_not_overwritten(segmenter, folder, tmp_path, name, resume):
    """Also one that is newer than the image, or lies where an earlier call wrote a result."""
    out = tmp_path / 'out'
    predict(segmenter, folder, out)
    mine = out / name
    cv2.imwrite(str(mine), draw(9, 9))
    before = mine.read_bytes()
    calls = len(segmenter.network.inputs)
    report = predict(segmenter, folder, out, resume=resume)
    (failure,) = report.failures
    assert f'its result {mine} would overwrite a file that is not the result' in failure
    assert '--overwrite' in failure
    assert mine.read_bytes() == before
    assert len(segmenter.network.inputs) == calls + (0 if resume else 1)  # b.jpg, not in vain a.png
    report = predict(segmenter, folder, out, overwrite=True)
    assert (len(report.written), report.failures) == (2, [])
    assert has_mark(mine)


def test_images_are_not_overwritten_even_with_overwrite(segmenter, tmp_path):
    """``x/x/a.png`` would become ``x/a.png``, which is segmented too."""
    inner = tmp_path / 'x' / 'x'
    inner.mkdir(parents=True)
    for seed, path in enumerate((inner / 'a.png', inner.parent / 'a.png')):
        cv2.imwrite(str(path), draw(24, 36 + seed))
    before = (inner.parent / 'a.png').read_bytes()
    report = predict(segmenter, inner.parent, tmp_path, overwrite=True)
    (failure,) = report.failures
    assert 'would overwrite an image that is segmented; give another OUT folder' in failure
    assert (inner.parent / 'a.png').read_bytes() == before


def video_of(tmp_path, count=2):
    path = tmp_path / 'street.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'MJPG'), 10, (36, 24))
    for _ in range(count):
        writer.write(draw(24, 36))
    writer.release()
    return path


def test_an_existing_video(segmenter, tmp_path):
    source, out = video_of(tmp_path), tmp_path / 'out'
    out.mkdir()
    target = out / 'street_overlay.webm'
    target.write_bytes(b"the user's")
    with pytest.raises(ValueError, match=r'street_overlay\.webm exists.*--overwrite'):
        predict(segmenter, source, out)
    later = target.stat().st_mtime + 10
    os.utime(source, (later, later))
    with pytest.raises(ValueError, match='exists'):
        predict(segmenter, source, out, resume=True)
    assert target.read_bytes() == b"the user's"
    assert predict(segmenter, source, out, overwrite=True).written == [target]
    os.utime(source, (0, 0))
    report = predict(segmenter, source, out, resume=True)
    assert (report.skipped, report.written) == (1, [])
