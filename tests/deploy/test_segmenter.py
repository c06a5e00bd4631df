"""From an image to its label map, with networks made up for it."""

import sys
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import (
    FOUR,
    MEAN,
    STD,
    FakeNetwork,
    brightest_channel,
    by_position,
    draw,
    labels_of,
)

# What the network is given.


@pytest.mark.parametrize('to_rgb', [True, False])
def test_preprocessing_equals_mmsegs(to_rgb):
    from mmseg.models import SegDataPreProcessor

    import mmseg_repvgg.models  # noqa: F401  mmseg needs the stand-in for mmcv._ext

    image = draw(8, 12)
    network = FakeNetwork(brightest_channel, preprocessing_inside=False, to_rgb=to_rgb)
    Segmenter(network)(image)
    processor = SegDataPreProcessor(mean=MEAN, std=STD, bgr_to_rgb=to_rgb)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    expected = processor(dict(inputs=[pixels], data_samples=None))['inputs'].numpy()
    np.testing.assert_allclose(network.inputs[0], expected, rtol=1e-6)
    assert np.abs(network.inputs[0][:, ::-1] - expected).max() > 0.1  # control: other channels


def test_preprocessing_inside_means_pixels():
    image = draw(8, 12)
    network = FakeNetwork(brightest_channel)
    labels = Segmenter(network)(image)
    assert np.array_equal(network.inputs[0][0].transpose(1, 2, 0), image)
    assert np.array_equal(labels, image.argmax(2))
    assert labels.dtype == np.uint8


# Whole images.


@pytest.mark.parametrize('size', [(16, 24), (7, 31), (5, 5), (40, 9)])
def test_whole_image_is_resized_as_mmseg_does(size):
    import mmcv

    image = draw(*size)
    network = FakeNetwork(by_position, **FOUR)
    labels = Segmenter(network)(image)
    resized = mmcv.imresize(image, (12, 8))
    assert np.array_equal(network.inputs[0][0].transpose(1, 2, 0), resized)
    logits = torch.from_numpy(by_position(network.inputs[0]))
    expected = functional.interpolate(logits, size, mode='bilinear')[0].argmax(0).numpy()
    # sums in another order: two equal logits may change places
    assert labels.shape == size
    assert (labels == expected).mean() > 0.99
    other = functional.interpolate(logits, size, mode='bilinear', align_corners=True)[0].argmax(0)
    assert (labels == other.numpy()).mean() < 0.99  # control


def test_whole_image_with_argmax_inside():
    """Twice the size: each label becomes four."""
    image = draw(16, 24)
    network = FakeNetwork(labels_of, argmax_inside=True, **FOUR)
    labels = Segmenter(network)(image)
    small = labels_of(network.inputs[0])[0]
    assert np.array_equal(labels, small.repeat(2, 0).repeat(2, 1))
    assert labels.dtype == np.uint8
    exact = Segmenter(network)(image[:8, :12])
    assert np.array_equal(exact, labels_of(network.inputs[1])[0])


# Images of other kinds.


@pytest.mark.parametrize('channels', [0, 1, 4])
def test_grey_and_alpha_as_opencv_reads_them(tmp_path, channels):
    image = draw(8, 12, channels)
    cv2.imwrite(str(tmp_path / 'x.png'), image)
    network = FakeNetwork(brightest_channel)
    segmenter = Segmenter(network)
    assert np.array_equal(segmenter(image), segmenter(tmp_path / 'x.png'))
    expected = cv2.imread(str(tmp_path / 'x.png'), cv2.IMREAD_COLOR).transpose(2, 0, 1)
    for given in network.inputs:
        assert np.array_equal(given[0], expected)


def test_files_are_read_as_mmseg_reads_them(tmp_path):
    import mmcv

    path = tmp_path / 'zwölf.png'  # a name that is not ASCII
    deep = draw(8, 12).astype(np.uint16) * 257
    path.write_bytes(cv2.imencode('.png', deep)[1].tobytes())
    network = FakeNetwork(brightest_channel)
    Segmenter(network)(str(path))
    expected = mmcv.imfrombytes(path.read_bytes())
    assert np.array_equal(network.inputs[0][0].transpose(1, 2, 0), expected)
    assert np.array_equal(expected, draw(8, 12))


@pytest.mark.parametrize(
    ('image', 'text'),
    [
        (np.zeros((8, 12, 3), np.uint16), r'the image is uint16, .* \(image // 257\)'),
        (np.zeros((8, 12, 3), np.float32), 'the image is float32, not a numpy array of uint8'),
        (np.zeros((0, 12, 3), np.uint8), r'shape \(0, 12, 3\); it must be'),
        (np.zeros((8, 0), np.uint8), r'shape \(8, 0, 1\); it must be'),
        (np.zeros((3, 8, 12), np.uint8), r'shape \(3, 8, 12\); it must be \(H, W, 3\)'),
        (np.zeros((1, 8, 12, 3), np.uint8), r'shape \(1, 8, 12, 3\)'),
        (np.zeros(8, np.uint8), r'shape \(8,\)'),
        (Image.new('RGB', (12, 8)), 'the image is Image, .* a PIL image in RGB with np.array'),
        (torch.zeros(3, 8, 12), 'the image is Tensor, not a numpy array'),
        ({}, 'the image is dict, not a numpy array'),
        (None, 'the image is NoneType, not a numpy array'),
    ],
)
def test_other_arrays_are_refused(image, text):
    with pytest.raises(ValueError, match=text):
        Segmenter(FakeNetwork(brightest_channel))(image)


@pytest.mark.parametrize(
    ('mode', 'suffix'),
    [('P', 'png'), ('P', 'gif'), ('LA', 'png'), ('1', 'png'), ('RGBA', 'webp'), ('CMYK', 'jpg')],
)
def test_files_of_other_colour_modes_have_the_colours_that_pillow_reads(tmp_path, mode, suffix):
    path, colours = tmp_path / f'x.{suffix}', Image.fromarray(draw(8, 12))
    frames = [colours.rotate(180).convert(mode)] if suffix == 'gif' else []  # animated
    more = dict(save_all=True, append_images=frames) if frames else {}
    colours.convert(mode).save(path, **({'lossless': True} if suffix == 'webp' else more))
    network = FakeNetwork(brightest_channel)
    Segmenter(network)(path)
    expected = np.asarray(Image.open(path).convert('RGB'))[..., ::-1].transpose(2, 0, 1)
    assert np.abs(network.inputs[0][0] - expected).max() <= 1
    assert expected.std() > 10


def test_one_pixel_is_labelled(tmp_path):
    network = FakeNetwork(brightest_channel)
    assert Segmenter(network)(np.uint8([[[0, 9, 0]]])).tolist() == [[1]]
    assert network.inputs[0].shape == (1, 3, 8, 12)


@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n'])
def test_damaged_and_missing_files_are_named(tmp_path, content):
    segmenter = Segmenter(FakeNetwork(brightest_channel))
    (tmp_path / 'x.png').write_bytes(content)
    with pytest.raises(ValueError, match=r'x\.png'):
        segmenter(tmp_path / 'x.png')
    with pytest.raises(FileNotFoundError, match=r'image .*none\.png not found'):
        segmenter(tmp_path / 'none.png')


# Lists of images.


def test_a_list_gives_the_labels_of_each_image(tmp_path):
    """Batches of at most two, of images that the network sees at one size."""
    images = [draw(8, 12), draw(40, 9), draw(8, 12)[::-1], draw(7, 31), draw(5, 5)]
    (tmp_path / 'x.png').write_bytes(cv2.imencode('.png', images[3])[1].tobytes())
    network = FakeNetwork(by_position, **FOUR)
    segmenter = Segmenter(network, batch=2)
    expected = [segmenter(image) for image in images]
    network.inputs.clear()
    found = segmenter([*images[:3], tmp_path / 'x.png', images[4]])
    assert [len(batch) for batch in network.inputs] == [2, 2, 1]
    assert [labels.shape for labels in found] == [image.shape[:2] for image in images]
    assert all(map(np.array_equal, found, expected))
    assert not np.array_equal(found[0], found[2])  # control: in the order of the images
    assert segmenter([]) == []
    assert np.array_equal(segmenter((images[1],))[0], expected[1])


def test_a_list_of_images_of_several_sizes_for_a_network_of_all_sizes():
    images = [draw(*size) for size in ((64, 70), (65, 64), (64, 70), (65, 64), (64, 70))]
    network = FakeNetwork(by_position, dynamic_size=True, **FOUR)
    found = Segmenter(network, batch=2)(images)
    shapes = [(2, 3, 64, 70), (2, 3, 65, 64), (1, 3, 64, 70)]
    assert [batch.shape for batch in network.inputs] == shapes
    assert all(np.array_equal(x, Segmenter(network)(y)) for x, y in zip(found, images, strict=True))


def test_a_list_with_windows_and_with_a_fixed_batch():
    images = [draw(20, 30), draw(8, 12)]
    for info in (dict(stride=(4, 6)), dict(dynamic_batch=False)):
        segmenter = Segmenter(FakeNetwork(by_position, **FOUR, **info))
        assert all(map(np.array_equal, segmenter(images), map(segmenter, images)))


def test_the_wrong_image_of_a_list_is_named(tmp_path):
    segmenter = Segmenter(FakeNetwork(brightest_channel))
    with pytest.raises(ValueError, match='^image 1 of the list: the image is NoneType'):
        segmenter([draw(8, 12), None])
    with pytest.raises(FileNotFoundError, match='^image 0 of the list: image .*none.png not found'):
        segmenter([tmp_path / 'none.png'])


def test_warming_up_runs_the_network_once():
    network = FakeNetwork(brightest_channel)
    Segmenter(network).warm_up()
    assert [images.shape for images in network.inputs] == [(1, 3, 8, 12)]
    network = FakeNetwork(brightest_channel, dynamic_size=True, size=(64, 64))
    Segmenter(network).warm_up((70, 90))
    assert [images.shape for images in network.inputs] == [(1, 3, 70, 90)]


# Overlays.


def test_overlay_by_hand():
    """Half of red (RGB 200, 0, 0) over grey 100; the class of 255 is unknown, its pixel stays."""
    segmenter = Segmenter(FakeNetwork(brightest_channel))
    image = np.full((1, 3, 3), 100, np.uint8)
    labels = np.array([[2, 0, 255]], np.uint8)
    assert segmenter.overlay(image, labels).tolist() == [
        [[50, 50, 150], [178, 50, 50], [100, 100, 100]]
    ]
    assert segmenter.overlay(image[..., 0], labels, 1).tolist() == [
        [[0, 0, 200], [255, 0, 0], [100, 100, 100]]
    ]
    signed = np.array([[2, 0, -1]], np.int64)
    assert np.array_equal(segmenter.overlay(image, signed, 0), image)
    assert image.min() == image.max() == 100  # the image itself is left


@pytest.mark.parametrize(
    ('labels', 'opacity', 'text'),
    [
        (np.zeros((12, 8), np.uint8), 0.5, r'labels of the shape \(12, 8\) and dtype uint8'),
        (np.zeros((8, 12), np.float32), 0.5, 'dtype float32'),
        (np.zeros((8, 12), np.uint8), 1.5, 'opacity=1.5 must be from 0 to 1'),
    ],
)
def test_wrong_overlays_are_refused(labels, opacity, text):
    with pytest.raises(ValueError, match=text):
        Segmenter(FakeNetwork(brightest_channel)).overlay(draw(8, 12), labels, opacity)


def test_overlay_without_palette():
    segmenter = Segmenter(FakeNetwork(brightest_channel, palette=()))
    with pytest.raises(ValueError, match='no colours'):
        segmenter.overlay(draw(8, 12), np.zeros((8, 12), np.uint8))


# Making a Segmenter.


def test_a_file_is_loaded_by_its_runtime(monkeypatch, tmp_path):
    runtimes, calls = ModuleType('runtimes'), []

    def load_runtime(path, runtime, threads):
        calls.append((path, runtime, threads))
        return FakeNetwork(brightest_channel)

    runtimes.load_runtime = load_runtime
    monkeypatch.setitem(sys.modules, 'mmseg_repvgg.deploy.runtimes', runtimes)
    image = draw(8, 12)
    assert np.array_equal(Segmenter(tmp_path / 'x.onnx', 'mnn', 2)(image), image.argmax(2))
    Segmenter('x.onnx')
    assert calls == [(tmp_path / 'x.onnx', 'mnn', 2), ('x.onnx', None, None)]


@pytest.mark.parametrize(
    ('info', 'options', 'text'),
    [
        ({}, dict(runtime='mnn'), "runtime='mnn', threads=None and device=None act on a file"),
        ({}, dict(threads=2), 'threads=2 and device=None act on a file'),
        ({}, dict(batch=0), 'batch=0 must be at least 1'),
        (dict(stride=(8, 13)), {}, 'stride of 13 pixels must be at least 1 and at most'),
    ],
)
def test_wrong_arguments_are_refused(info, options, text):
    with pytest.raises(ValueError, match=text):
        Segmenter(FakeNetwork(brightest_channel, **info), **options)


@pytest.mark.parametrize(
    ('function', 'info'),
    [
        (by_position, {}),  # four classes, the info says three
        (labels_of, FOUR),
        (by_position, dict(argmax_inside=True, **FOUR)),
        (lambda images: by_position(images)[..., ::2, ::2], FOUR),
    ],
)
def test_a_network_that_is_not_what_its_info_says(function, info):
    with pytest.raises(ValueError, match='they do not belong together; export again'):
        Segmenter(FakeNetwork(function, **info))(draw(8, 12))
