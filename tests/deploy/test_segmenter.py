"""From an image to its label map, with networks made up for it."""

import sys
from types import ModuleType, SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from mmseg_repvgg.deploy.segmenter import Segmenter
from tests.deploy.networks import MEAN, STD, FakeNetwork, brightest_channel, by_position

FOUR = dict(classes=('a', 'b', 'c', 'd'), palette=((0, 0, 0),) * 4)


def draw(height, width, channels=3):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def labels_of(images):
    return by_position(images).argmax(1)


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


# Windows.


@pytest.mark.parametrize('inside', [True, False])
@pytest.mark.parametrize('size', [(8, 12), (20, 31), (5, 31), (20, 7), (3, 4)])
def test_windows_equal_mmsegs_slide_inference(size, inside):
    """On the image, padded with zeros after normalisation where it is smaller than a window."""
    from mmseg.models import EncoderDecoder

    import mmseg_repvgg.models  # noqa: F401

    image = draw(*size)
    info = dict(stride=(5, 8), preprocessing_inside=inside, **FOUR)
    labels = Segmenter(FakeNetwork(by_position, **info), pad_small_images=True)(image)

    mean, std = (np.float32(x)[::-1] for x in (MEAN, STD))
    pixels = image.astype(np.float32) if inside else ((image - mean) / std)[..., ::-1]
    below, right = max(8 - size[0], 0), max(12 - size[1], 0)
    planes = [
        np.pad(plane, ((0, below), (0, right)), constant_values=mean[channel] if inside else 0)
        for channel, plane in enumerate(pixels.transpose(2, 0, 1))
    ]
    segmentor = SimpleNamespace(
        test_cfg=SimpleNamespace(stride=(5, 8), crop_size=(8, 12)),
        out_channels=4,
        encode_decode=lambda crop, _: torch.from_numpy(by_position(crop.numpy())),
    )
    inputs = torch.from_numpy(np.stack(planes)[None].astype(np.float32))
    logits = EncoderDecoder.slide_inference(segmentor, inputs, [{}])[0]
    expected = logits.argmax(0).numpy()[: size[0], : size[1]]
    assert np.array_equal(labels, expected)
    assert len(np.unique(expected)) > 1


@pytest.mark.parametrize('size', [(7, 30), (20, 11), (3, 4)])
def test_an_image_smaller_than_a_window_is_refused(size):
    """mmseg shrinks its windows, which a network of a fixed size cannot."""
    segmenter = Segmenter(FakeNetwork(by_position, stride=(5, 8), **FOUR))
    fitting = f'--size {min(size[0], 8)} {min(size[1], 12)}'
    with pytest.raises(ValueError, match=f'{size[0]}x{size[1]} pixels is smaller .* {fitting}'):
        segmenter(draw(*size))


@pytest.mark.parametrize('align_corners', [False, True])
def test_images_are_resized_before_windows_as_tested(align_corners):
    """By mmcv's Resize, mmseg's slide_inference and its resize to the size of the image."""
    import mmcv
    from mmseg.models import EncoderDecoder

    image = draw(13, 19)
    info = dict(stride=(5, 8), resize=(40, 26), align_corners=align_corners, **FOUR)
    labels = Segmenter(FakeNetwork(by_position, **info))(image)
    resized = mmcv.imrescale(image, (40, 26))
    assert resized.shape == (26, 38, 3)
    segmentor = SimpleNamespace(
        test_cfg=SimpleNamespace(stride=(5, 8), crop_size=(8, 12)),
        out_channels=4,
        encode_decode=lambda crop, _: torch.from_numpy(by_position(crop.numpy())),
    )
    inputs = torch.from_numpy(resized.transpose(2, 0, 1)[None].astype(np.float32))
    logits = EncoderDecoder.slide_inference(segmentor, inputs, [{}])

    def expected(align):
        sized = functional.interpolate(logits, (13, 19), mode='bilinear', align_corners=align)
        return sized[0].argmax(0).numpy()

    assert (labels == expected(align_corners)).mean() > 0.99  # equal logits may change places
    assert (labels == expected(not align_corners)).mean() < 0.99  # control
    plain = Segmenter(FakeNetwork(by_position, stride=(5, 8), **FOUR))(image)
    assert (labels == plain).mean() < 0.9  # control: without the resize


def test_one_logit_with_a_threshold():
    """By the sigmoid's definition; mmseg's is > too."""

    def shifted(images):
        return images.mean(1, keepdims=True) / 50 - 2.5

    two = dict(classes=('background', 'road'), palette=((0, 0, 0), (9, 9, 9)))
    image = draw(8, 12)
    for threshold in (0.3, 0.5, 0.9):
        labels = Segmenter(FakeNetwork(shifted, threshold=threshold, **two))(image)
        share = 1 / (1 + np.exp(-(image.mean(2) / 50 - 2.5)))
        assert np.array_equal(labels, share > threshold)
        assert labels.dtype == np.uint8
    windows = Segmenter(FakeNetwork(shifted, threshold=0.3, stride=(5, 8), **two))(draw(20, 31))
    share = 1 / (1 + np.exp(-(draw(20, 31).mean(2) / 50 - 2.5)))
    assert np.array_equal(windows, share > 0.3)


@pytest.mark.parametrize('stride', [None, (5, 8)])
@pytest.mark.parametrize(
    ('channels', 'color_type', 'image'),
    [
        (1, 'grayscale', draw(20, 31, 0)),
        (1, 'unchanged', draw(20, 31, 1)),
        (3, 'unchanged', draw(20, 31).astype(np.uint16) * 257),
        (4, 'unchanged', draw(20, 31, 4)),
        (5, 'unchanged', draw(20, 31, 5).astype(np.float32)),
    ],
)
def test_other_channels_reach_the_network(channels, color_type, image, stride):
    values = dict(mean=(7.0,) * channels, std=(2.0,) * channels, to_rgb=False)
    info = dict(values, channels=channels, color_type=color_type, preprocessing_inside=False)
    network = FakeNetwork(
        lambda x: x[:, [0, 0, -1]], size=(20, 31), stride=stride and (20, 31), **info
    )
    segmenter = Segmenter(network)
    labels = segmenter(image)
    planes = image.reshape(20, 31, -1).transpose(2, 0, 1)
    assert np.array_equal(network.inputs[0][0], (planes.astype(np.float32) - 7) / 2)
    assert segmenter.overlay(image, labels).shape == (20, 31, 3)
    smaller = Segmenter(FakeNetwork(lambda x: x[:, [0, 0, -1]], stride=stride, **info))
    assert smaller(image).shape == (20, 31)
    with pytest.raises(ValueError, match='shape'):
        segmenter(np.zeros((20, 31, 2), image.dtype))


@pytest.mark.parametrize(
    ('values', 'text'),
    [
        (dict(std=(1, 0, 1)), 'must not be 0'),
        (dict(std=(1, float('nan'), 1)), 'std=.* must be 3 finite numbers'),
        (dict(mean=(1, float('inf'), 1)), 'mean=.* must be 3 finite numbers'),
        (dict(mean=(1,)), 'mean=.* must be 3 finite numbers'),
    ],
)
def test_a_normalisation_that_no_model_has_is_refused(values, text):
    with pytest.raises(ValueError, match=text):
        FakeNetwork(brightest_channel, **values)


def test_windows_with_argmax_inside_take_the_nearest():
    """Windows of 12 at 0 and 8 of 20 columns: the centres are at 6 and 14, the border at 10."""
    image = draw(8, 20)
    network = FakeNetwork(labels_of, argmax_inside=True, stride=(8, 8), **FOUR)
    labels = Segmenter(network)(image)
    left, right = labels_of(network.inputs[0])
    assert np.array_equal(labels, np.hstack([left[:, :10], right[:, 2:]]))


@pytest.mark.parametrize(
    ('dynamic', 'batch', 'calls'), [(True, 4, [4, 2]), (False, 4, [1] * 6), (True, 1, [1] * 6)]
)
def test_windows_are_batched_if_the_network_takes_batches(dynamic, batch, calls):
    network = FakeNetwork(brightest_channel, stride=(8, 12), dynamic_batch=dynamic)
    image = draw(16, 36)
    labels = Segmenter(network, batch=batch)(image)
    assert [len(images) for images in network.inputs] == calls
    assert np.array_equal(labels, image.argmax(2))


@pytest.mark.parametrize(('count', 'dtype'), [(256, np.uint8), (257, np.uint16)])
def test_labels_hold_all_classes(count, dtype):
    def last(images):
        logits = np.zeros((len(images), count, 8, 12), np.float32)
        logits[:, -1] = 1
        return logits

    labels = Segmenter(FakeNetwork(last, classes=tuple(map(str, range(count)))))(draw(9, 13))
    assert labels.dtype == dtype
    assert (labels == count - 1).all()


def test_the_first_of_equal_logits_wins():
    image = np.full((8, 12, 3), 7, np.uint8)
    assert not Segmenter(FakeNetwork(brightest_channel))(image).any()


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
    ],
)
def test_other_arrays_are_refused(image, text):
    with pytest.raises(ValueError, match=text):
        Segmenter(FakeNetwork(brightest_channel))(image)


@pytest.mark.parametrize('content', [b'', b'not an image', b'\x89PNG\r\n\x1a\n'])
def test_damaged_and_missing_files_are_named(tmp_path, content):
    segmenter = Segmenter(FakeNetwork(brightest_channel))
    (tmp_path / 'x.png').write_bytes(content)
    with pytest.raises(ValueError, match=r'x\.png'):
        segmenter(tmp_path / 'x.png')
    with pytest.raises(FileNotFoundError, match=r'image .*none\.png not found'):
        segmenter(tmp_path / 'none.png')


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
