"""Which images are drawn, and how image and labels are cut."""

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmseg_repvgg.deploy.image_pipeline import Preparation
from mmseg_repvgg.deploy.model_description import ModelDescription
from mmseg_repvgg.deploy.quantize.pictures import Inputs, Picture, Pictures, draw_pictures
from tests.deploy.networks import INFO


def names(cfg, source, count=3, seed=0, without=()):
    return draw_pictures(cfg, str(source), count, seed, without).names


def test_drawn_by_seed(segmentor):
    cfg = segmentor[0]
    drawn = names(cfg, 'train')
    assert drawn == names(cfg, 'train') and len(set(drawn)) == 3
    assert any(names(cfg, 'train', seed=seed) != drawn for seed in (1, 2, 3))
    assert len(names(cfg, 'train', count=100)) == 6  # there are no more
    assert len(names(cfg, 'test', count=100)) == 3


def test_some_are_left_out(segmentor):
    all_of_them = draw_pictures(segmentor[0], 'test', 9, 0).drawn
    without = {all_of_them[0].path}
    assert set(draw_pictures(segmentor[0], 'test', 9, 0, without).drawn) == set(all_of_them[1:])


def test_a_folder_with_subfolders(segmentor, tmp_path):
    for name in ('a.png', 'b/c.JPG', 'b/notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b'')
    assert sorted(names(segmentor[0], tmp_path)) == ['a.png', 'b/c.JPG']


@pytest.mark.parametrize('source', ['train', 'nowhere'])
def test_no_images(segmentor, source):
    cfg = Config(segmentor[0].to_dict())
    cfg.train_dataloader.dataset.data_root = 'nowhere'
    with pytest.raises(FileNotFoundError, match='no images found in the .*: give --calibration FO'):
        draw_pictures(cfg, source, 3, 0)


def inputs(segmentor, pictures, **info):
    described = ModelDescription(**INFO | dict(format='onnx') | info)
    return Inputs(pictures, segmentor[1], Preparation(), described, seed=0)


def test_labels_are_those_of_the_pixels(segmentor):
    """The image shows its labels, so that both must be cut and resized alike."""
    cfg = segmentor[0]
    pictures = draw_pictures(cfg, 'test', 3, 0)
    for size, stride in [((64, 128), None), ((40, 50), (30, 30)), ((32, 64), None)]:
        found = inputs(segmentor, pictures, size=size, stride=stride)
        for i in range(3):
            labels, pixels = found.labels(i), found.pixels(i)[0]
            assert labels.shape == size == pixels.shape[1:]
            path = pictures.drawn[i].path.replace('leftImg8bit', 'gtFine', 1)
            whole = cv2.imread(path.replace('_leftImg8bit', '_gtFine_labelTrainIds'), -1)
            assert set(np.unique(labels)) <= set(np.unique(whole))


def test_windows_are_at_random_places_but_repeat(tmp_path, segmentor):
    ramp = np.arange(60 * 80, dtype=np.uint8).reshape(60, 80)
    cv2.imwrite(str(tmp_path / 'a.png'), ramp)
    pictures = Pictures('folder', tuple(Picture(str(tmp_path / 'a.png')) for _ in range(4)))
    found = inputs(segmentor, pictures, size=(40, 50), stride=(20, 20))
    windows = [found.pixels(i)[0, 0] for i in range(4)]
    assert len({w[0, 0] for w in windows}) > 1
    for i, window in enumerate(windows):
        assert np.array_equal(window, found.pixels(i)[0, 0])
        places = np.lib.stride_tricks.sliding_window_view(ramp, (40, 50))
        assert (places == window).all(axis=(2, 3)).any()
    assert found.labels(0) is None  # a folder has none


def test_pixels_or_normalised(segmentor):
    pictures = draw_pictures(segmentor[0], 'test', 1, 0)
    plain = inputs(segmentor, pictures, size=(64, 128), preprocessing_inside=True)[0]
    assert plain.shape == (1, 3, 64, 128) and plain.max() > 100
    normalised = inputs(segmentor, pictures, size=(64, 128), preprocessing_inside=False)[0]
    mean, std = (np.array(INFO[name], np.float32)[:, None, None] for name in ('mean', 'std'))
    assert normalised[0] == pytest.approx((plain[0, ::-1] - mean) / std, abs=1e-4)
