"""The legend beneath an overlay."""

import cv2
import numpy as np
import pytest

from mmseg_repvgg.deploy.legend import add_legend
from tests.deploy.networks import draw

CLASSES = ('road', 'traffic light', 'tree', 'sky')
PALETTE = ((128, 64, 128), (250, 170, 30), (107, 142, 35), (70, 130, 180))


@pytest.fixture
def texts(monkeypatch):
    """What is written."""
    given, put = [], cv2.putText
    monkeypatch.setattr(cv2, 'putText', lambda *args: given.append(args[1]) or put(*args))
    return given


def shown_colours(picture, height, palette):
    """The indices of the colours that are in the legend."""
    bgr = (np.array(colour[::-1]) for colour in palette)
    return [i for i, colour in enumerate(bgr) if (picture[height:] == colour).all(2).any()]


@pytest.mark.parametrize('size', [(360, 480), (1024, 2048), (24, 36), (5, 5000)])
def test_classes_that_are_in_the_picture_and_nothing_hidden(texts, size):
    image = draw(*size)
    picture = add_legend(image, np.array([9990, 0, 7, 3]), CLASSES, PALETTE)
    height, width = size
    assert np.array_equal(picture[:height, :width], image)
    assert (picture[:height, width:] == 255).all()
    assert texts == ['road 99.9 %', 'tree 0.1 %', 'sky < 0.1 %']
    assert shown_colours(picture, height, PALETTE) == [0, 2, 3]


@pytest.mark.parametrize('size', [(360, 480), (1024, 2048), (24, 36)])
def test_entries_do_not_overlap_or_leave_the_picture(monkeypatch, size):
    """Each entry, drawn on its own, changes only pixels that no other entry changes."""
    counts = np.full(4, 25)
    whole = add_legend(draw(*size), counts, CLASSES, PALETTE)
    put = cv2.putText
    used = np.zeros(whole.shape[:2], int)
    for name in CLASSES:

        def put_one(canvas, text, *args, name=name):
            return put(canvas, text, *args) if text.startswith(name) else canvas

        monkeypatch.setattr(cv2, 'putText', put_one)
        one = add_legend(draw(*size), counts, CLASSES, PALETTE)
        monkeypatch.setattr(cv2, 'putText', lambda canvas, *args: canvas)
        none = add_legend(draw(*size), counts, CLASSES, PALETTE)
        ink = (one != none).any(2)
        assert ink.any()
        assert not ink[:, -1].any() and not ink[-1].any()  # not cut off
        used += ink
    assert used.max() == 1


def test_letters_grow_with_the_picture():
    small, large = (
        add_legend(draw(100, width), np.ones(4, int), CLASSES, PALETTE) for width in (480, 2048)
    )
    assert (len(small) - 100, len(large) - 100) == (2 * 16, 1 * 51)  # rows of 40 * width / 1600


def test_frames_of_a_video_have_one_size():
    image, classes = draw(200, 480), [f'class {i}' for i in range(150)]
    colours = [(i, 255 - i, 7) for i in range(150)]
    few, many = np.zeros(150, int), np.arange(150)
    few[3] = 5
    pictures = [add_legend(image, counts, classes, colours, True) for counts in (few, many)]
    assert pictures[0].shape == pictures[1].shape
    assert len(pictures[0]) <= 300
    shown = shown_colours(pictures[1], 200, colours)
    assert 10 < len(shown) < 150
    assert shown == list(range(150 - len(shown), 150))  # the largest
    # negative control: without it the heights differ
    heights = {len(add_legend(image, counts, classes, colours)) for counts in (few, many)}
    assert len(heights) == 2


def test_names_with_line_breaks(texts):
    add_legend(draw(9, 9), np.array([1]), ['two\nlines '], PALETTE)
    assert texts == ['two lines 100.0 %']
