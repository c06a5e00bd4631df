"""The page's own code in Node, compared with OpenCV and with Segmenter."""

import base64
import json
import re
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmseg_repvgg.deploy.images import resize_plane
from mmseg_repvgg.deploy.segmenter import Segmenter
from mmseg_repvgg.deploy.web import PAGE
from tests.deploy.networks import FakeNetwork, draw

SIZES = [
    ((7, 9), (7, 9)),
    ((64, 96), (32, 48)),
    ((50, 70), (100, 140)),
    ((33, 47), (64, 96)),
    ((97, 131), (64, 96)),
    ((240, 320), (65, 129)),
    ((1, 5), (9, 4)),
    ((200, 3), (67, 1)),
]
"""Height and width before and after."""


@pytest.fixture(scope='module')
def node():
    """Calls the page's functions on a list of cases."""
    program = shutil.which('node')
    if program is None:
        pytest.skip('Node is not installed')

    def call(cases, folder=PAGE):
        script = Path(__file__).with_name('web_page.mjs')
        done = subprocess.run(
            [program, script, folder], input=json.dumps(cases), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def encoded(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def decoded(text, dtype, *shape):
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def rgba(image):
    """The pixels that a canvas gives."""
    return encoded(cv2.cvtColor(image, cv2.COLOR_BGR2RGBA))


def test_bytes_are_resized_as_by_opencv(node):
    images = [draw(*before) for before, _ in SIZES]
    cases = [
        dict(kind='bytes', pixels=rgba(image), **{'from': before, 'to': after})
        for image, (before, after) in zip(images, SIZES, strict=True)
    ]
    for text, image, (before, after) in zip(node(cases), images, SIZES, strict=True):
        found = decoded(text, np.uint8, 3, *after)[::-1].transpose(1, 2, 0)
        wanted = cv2.resize(image, after[::-1], interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(found, wanted), (before, after)


@pytest.mark.parametrize('kind', ['resizePlane', 'resizePlaneAligned'])
def test_logits_are_resized_as_by_opencv_and_pytorch(node, kind):
    planes = [np.float32(draw(*before, 0)) / 7 for before, _ in SIZES]
    cases = [
        dict(kind=kind, pixels=encoded(plane), **{'from': before, 'to': after})
        for plane, (before, after) in zip(planes, SIZES, strict=True)
    ]
    for text, plane, (before, after) in zip(node(cases), planes, SIZES, strict=True):
        wanted = resize_plane(plane, after, kind.endswith('Aligned'))
        found = decoded(text, np.float32, *after)
        # OpenCV's own code, without Intel's library, rounds places to float32
        np.testing.assert_allclose(found, wanted, atol=2e-3, err_msg=f'{before} {after}')


def one_logit(images):
    return images[:, :1].copy()


def scaled(images):
    """The brightest channel, without ties."""
    return images * np.float32([1, 1.013, 0.991])[:, None, None]


def by_place(images):
    """Logits that also depend on the place in the window."""
    y, x = np.mgrid[: images.shape[2], : images.shape[3]].astype(np.float32)
    return images + np.stack([1.3 * x, 2.1 * y, np.full_like(x, 20)])


def labels(images):
    """Integers of 64 bits."""
    return np.where(
        images[:, 0] > images[:, 1], 0, np.where(images[:, 2] > 99, 2, 1).astype(np.int64)
    )


MODELS = {
    'whole, pixels': (scaled, dict()),
    'whole, normalised': (scaled, dict(preprocessing_inside=False)),
    'whole, BGR': (scaled, dict(preprocessing_inside=False, to_rgb=False)),
    'whole, align_corners': (scaled, dict(align_corners=True)),
    'all sizes': (scaled, dict(dynamic_size=True)),
    'all sizes, resized': (scaled, dict(dynamic_size=True, resize=(90, 70))),
    'all sizes, ratio not kept': (
        scaled,
        dict(dynamic_size=True, resize=(90, 70), keep_ratio=False, align_corners=True),
    ),
    'windows': (by_place, dict(size=(32, 40), stride=(20, 27))),
    'windows, resized': (by_place, dict(size=(32, 40), stride=(20, 27), resize=(90, 70))),
    'windows, all sizes': (
        by_place,
        dict(size=(72, 400), stride=(20, 300), dynamic_size=True, preprocessing_inside=False),
    ),
    'binary': (
        one_logit,
        dict(
            classes=('no', 'yes'),
            palette=((0, 0, 0), (255, 0, 0)),
            threshold=0.6,
            preprocessing_inside=False,
        ),
    ),
    'labels': (labels, dict(argmax_inside=True)),
}


@pytest.mark.parametrize('name', MODELS)
def test_labels_are_those_of_segmenter(node, name):
    function, info = MODELS[name]
    network = FakeNetwork(function, **info)
    blurred = cv2.normalize(
        cv2.GaussianBlur(draw(112, 136), (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX
    )
    images = [draw(80, 104), blurred]
    case = dict(kind='labels', network=function.__name__, info=asdict(network.info))
    cases = [dict(case, pixels=rgba(image), **{'from': image.shape[:2]}) for image in images]
    for text, image in zip(node(cases), images, strict=True):
        wanted = Segmenter(network)(image)
        assert len(np.unique(wanted)) > 1
        assert np.mean(decoded(text, np.uint8, *image.shape[:2]) == wanted) > 0.9999


def test_a_wrong_mean_is_found(node):
    """Negative control."""
    wrong = FakeNetwork(scaled, preprocessing_inside=False, mean=(9, 99, 199)).info
    image = draw(64, 97)
    case = dict(kind='labels', network='scaled', info=asdict(wrong))
    (text,) = node([dict(case, pixels=rgba(image), **{'from': image.shape[:2]})])
    right = Segmenter(FakeNetwork(scaled, preprocessing_inside=False))(image)
    assert np.mean(decoded(text, np.uint8, *image.shape[:2]) == right) < 0.9


def test_images_that_a_model_cannot_take_and_outputs_that_do_not_fit(node):
    infos = dict(
        small=dict(size=(72, 80), stride=(20, 27)),
        tiny=dict(dynamic_size=True),
        two=dict(classes=('a', 'b')),
    )
    image = draw(60, 97)
    cases = [
        dict(
            kind='labels',
            network='scaled',
            info=asdict(FakeNetwork(scaled, **info).info),
            pixels=rgba(image),
            **{'from': image.shape[:2]},
        )
        for info in infos.values()
    ]
    small, tiny, two = (answer['error'] for answer in node(cases))
    assert small == 'the image of 60x97 pixels is smaller than the windows of the model, 72x80'
    assert re.fullmatch('the image of 60x97 pixels is smaller than 64x64, .*', tiny)
    assert two.startswith('the network returns (1, 3, 8, 12), but its .json says (1, 2, 8, 12)')
