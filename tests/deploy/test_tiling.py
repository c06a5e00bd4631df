"""Windows are placed and averaged as in mmseg, whose slide_inference is run beside."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmseg_repvgg.deploy.tiling import (
    check_fits_window,
    mean_strips,
    nearest_labels,
    nearest_pixels,
    window_starts,
)
from tests.deploy.networks import by_position

SIZES = [  # image, window, stride
    ((8, 12), (8, 12), (8, 12)),
    ((9, 12), (8, 12), (5, 12)),
    ((20, 31), (8, 12), (5, 8)),
    ((23, 24), (8, 12), (3, 4)),
    ((24, 24), (8, 12), (8, 12)),
    ((30, 13), (8, 12), (1, 12)),
]


def slide_inference(image, size, stride):
    """mmseg's logits."""
    from mmseg.models import EncoderDecoder  # not before ours: it needs the stand-in for mmcv._ext

    segmentor = SimpleNamespace(
        test_cfg=SimpleNamespace(stride=stride, crop_size=size),
        out_channels=4,
        encode_decode=lambda crop, _: torch.from_numpy(by_position(crop.numpy())),
    )
    return EncoderDecoder.slide_inference(segmentor, torch.from_numpy(image)[None], [{}])[0].numpy()


def draw(height, width):
    return np.random.default_rng(0).uniform(0, 255, (3, height, width)).astype(np.float32)


@pytest.mark.parametrize(
    ('length', 'window', 'stride', 'starts'),
    [
        (4, 4, 4, [0]),
        (5, 4, 4, [0, 1]),
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 7]),
        (4, 4, 1, [0]),
    ],
)
def test_window_starts(length, window, stride, starts):
    assert window_starts(length, window, stride) == starts


@pytest.mark.parametrize('stride', [0, -1, 5])
def test_a_stride_that_leaves_pixels_out_is_refused(stride):
    with pytest.raises(ValueError, match=rf'stride of {stride} pixels .* at most the window, 4'):
        window_starts(10, 4, stride)


@pytest.mark.parametrize(('image', 'size', 'stride'), SIZES)
@pytest.mark.parametrize('batch', [1, 3, 100])
def test_mean_equals_mmsegs(image, size, stride, batch):
    pixels = draw(*image)
    expected = slide_inference(pixels, size, stride)
    strips = list(mean_strips(by_position, pixels, size, stride, batch))
    mean = np.concatenate(strips, axis=1)
    assert mean.dtype == np.float32
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-3)
    assert all(strip.shape[1] <= size[0] for strip in strips)


def test_the_comparison_sees_a_wrong_placement():
    pixels = draw(20, 31)
    mean = np.concatenate(list(mean_strips(by_position, pixels, (8, 12), (5, 7))), axis=1)
    assert np.abs(mean - slide_inference(pixels, (8, 12), (5, 8))).max() > 1


def test_strips_come_before_the_image_is_done():
    calls = []

    def network(windows):
        calls.append(len(windows))
        return by_position(windows)

    strips = mean_strips(network, draw(32, 12), (8, 12), (4, 12))
    next(strips)
    assert len(calls) == 2  # the first of seven windows is past once the second is known
    list(strips)
    assert len(calls) == 7


@given(st.integers(1, 30), st.integers(0, 60), st.data())
def test_every_pixel_has_the_nearest_window(window, more, data):
    stride, length = data.draw(st.integers(1, window)), window + more
    kept = nearest_pixels(length, window, stride)
    assert list(kept) == window_starts(length, window, stride)
    owner = {pixel: start for start, (one, end) in kept.items() for pixel in range(one, end)}
    assert sorted(owner) == list(range(length))
    assert sum(end - one for one, end in kept.values()) == length
    for pixel, start in owner.items():
        assert start <= pixel < start + window
        distances = {s: abs(2 * pixel + 1 - (2 * s + window)) for s in kept}
        assert distances[start] == min(distances.values())


def test_nearest_labels_by_hand():
    """Windows of 4 at 0, 2 and 3 of 7 pixels: centres 2, 4 and 5, borders at 3 and 4.5."""
    assert nearest_pixels(7, 4, 2) == {0: (0, 3), 2: (3, 4), 3: (4, 7)}
    image = np.zeros((3, 4, 7), np.float32)
    image[:] = np.arange(7)

    def column(windows):  # of the window, and ten times where it begins
        return (np.arange(4) + 10 * windows[:, 0, :, :1]).astype(np.int64)

    labels = nearest_labels(column, image, (4, 4), (4, 2), batch=2)
    assert labels.dtype == np.int64
    assert labels.tolist() == [[0, 1, 2, 21, 31, 32, 33]] * 4


@pytest.mark.parametrize(
    ('shape', 'advice'),
    [
        ((40, 300), 'Export one with --dynamic-size or --size 40 128, or pad them '),
        ((1, 1), 'cannot. Pad it '),  # a size that the export would refuse is not suggested
    ],
)
def test_images_smaller_than_a_window_are_refused_with_what_helps(shape, advice):
    check_fits_window((64, 128), (64, 128))
    with pytest.raises(ValueError, match=r'smaller than the windows of the exported') as error:
        check_fits_window(shape, (64, 128))
    assert advice in str(error.value)
