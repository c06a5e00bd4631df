"""Windows of a Segmenter are those of mmseg, and what becomes of their logits."""

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest
import torch
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


@pytest.mark.parametrize('size', [(39, 60), (50, 47), (33, 34)])
def test_an_image_smaller_than_a_window_is_refused(size):
    """mmseg shrinks its windows, which a network of a fixed size cannot."""
    segmenter = Segmenter(FakeNetwork(by_position, size=(40, 48), stride=(20, 20), **FOUR))
    fitting = f'--size {min(size[0], 40)} {min(size[1], 48)}'
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
        (dict(size=(64, 'x')), r"size=\(64, 'x'\) must be \(height, width\) in pixels"),
        (dict(palette=((0, 0, 300),)), r'\(0, 0, 300\) of the palette must be red, green'),
        (dict(palette=((0, 0.5, 3),)), 'of the palette must be red'),
        (dict(palette=((1, 2),)), 'of the palette must be red'),
        (dict(std=(1, float('nan'), 1)), 'std=.* must be 3 finite numbers'),
        (dict(mean=(1, float('inf'), 1)), 'mean=.* must be 3 finite numbers'),
        (dict(mean=(1,)), 'mean=.* must be 3 finite numbers'),
    ],
)
def test_a_description_that_no_model_has_is_refused(values, text):
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


def peak_bytes(segmenter, image):
    """The most memory that numpy holds during a call, besides what it held before."""
    tracemalloc.start()
    try:
        segmenter(image)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('way', ['windows', 'argmax', 'resized'])
def test_memory_does_not_grow_with_the_number_of_windows(way):
    """It is that of the labels, a batch of windows, and the sums of one row of windows.

    If the image was resized, the logits of the resized image are kept instead of those sums.
    """
    image, resized, window, classes = draw(3072, 192), (1536, 96), (48, 96), 20

    def network(images):
        logits = np.repeat(images[:, :1], classes, axis=1)
        return logits.argmax(1) if way == 'argmax' else logits

    def peak(*stride):
        made = FakeNetwork(
            network,
            size=window,
            stride=stride,
            argmax_inside=way == 'argmax',
            resize=resized[::-1] if way == 'resized' else None,
            classes=tuple(map(str, range(classes))),
        )
        made.inputs = SimpleNamespace(append=lambda images: None)  # a list would keep them
        return peak_bytes(Segmenter(made, batch=2), image)

    few, many = peak(48, 96), peak(6, 12)
    assert many < 1.1 * few
    pixels, row = image[..., 0].size, window[0] * image.shape[1]
    windows = 2 * 2 * 4 * window[0] * window[1] * (3 + 3 + classes)  # two batches of float32
    labels = pixels * (8 + 1 if way == 'argmax' else 2)  # int64 to uint8, or strips to an image
    sums = 3 * 4 * row * (classes + 1)  # one row, the next, and their mean
    if way == 'resized':
        sums += 4 * np.prod(resized) * (classes + 3) + 3 * 4 * pixels  # and planes of full size
    assert few < labels + windows + sums
    if way == 'windows':
        assert few < 4 * pixels * classes / 8  # control: far less than the logits of the image
