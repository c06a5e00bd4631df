"""Pictures of predictions: colours by hand, what a model predicts, and what cannot be compared."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope

from mmseg_repvgg import cli
from mmseg_repvgg.engine import launch
from mmseg_repvgg.plots.predictions import Predictions, draw_predictions, predict
from tests.common import randomise_batchnorms, runner_cfg

HAND = Predictions(
    'hand',
    ('sky', 'road'),
    np.array([[100, 0, 0], [0, 200, 0]], np.uint8),
    [np.full((2, 2, 3), 50, np.uint8)],
    [np.array([[0, 1], [255, 0]])],
    [np.array([[0, 1], [1, 0]])],
)


def test_colours_over_an_image_by_hand():
    """0.4 of 50, and 0.6 of the colour; what is ignored stays grey."""
    sky, road, grey = [80, 20, 20], [20, 140, 20], [50, 50, 50]
    assert HAND.over(0, HAND.truth[0]).tolist() == [[sky, road], [grey, sky]]


@pytest.fixture
def trained(scenes, tmp_path):
    cfg = runner_cfg(scenes, str(tmp_path / 'work'))
    init_default_scope('mmseg')
    torch.manual_seed(0)
    model = randomise_batchnorms(MODELS.build(cfg.model))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')
    cfg.dump(tmp_path / 'tiny.py')
    return model, str(tmp_path / 'tiny.py'), str(tmp_path / 'tiny.pth')


def test_the_predictions_are_those_of_the_model(trained):
    model, config, checkpoint = trained
    cfg = launch.load_config(config)
    found = predict(cfg, checkpoint, 2)
    assert (found.name, len(found.images)) == ('tiny', 2)
    for image, truth, labels in zip(found.images, found.truth, found.labels, strict=True):
        assert image.shape[:2] == truth.shape == labels.shape == (64, 128)
        pixels = torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy())  # BGR, as mmcv reads
        data = model.data_preprocessor(dict(inputs=[pixels]), False)
        (result,) = model.predict(data['inputs'])
        assert np.array_equal(result.pred_sem_seg.data[0].numpy(), labels)
    assert not np.array_equal(found.labels[0], found.labels[1])
    many = predict(cfg, checkpoint, 10**6)  # all there are
    assert np.array_equal(many.labels[0], found.labels[0])
    assert np.array_equal(many.labels[-1], found.labels[-1])
    with pytest.raises(ValueError, match='number of images must be at least 1, not 0'):
        predict(cfg, checkpoint, 0)


def test_models_are_drawn_side_by_side(trained, tmp_path, monkeypatch, capsys):
    _, config, checkpoint = trained
    out = tmp_path / 'p.png'
    words = ['plot', 'predictions', config, checkpoint, config, checkpoint, '--images', '2']
    monkeypatch.setattr('sys.argv', ['mmseg-repvgg', *words, '--out', str(out)])
    cli.main()
    assert f'wrote {out}' in capsys.readouterr().out
    assert out.stat().st_size > 10000
    monkeypatch.setattr('sys.argv', ['mmseg-repvgg', *words[:5], '--out', str(out)])
    with pytest.raises(SystemExit, match='give a checkpoint after each config'):
        cli.main()


def test_the_rows_and_columns_and_what_cannot_be_compared():
    figure = draw_predictions([HAND, replace(HAND, name='other'), replace(HAND, truth=[None])])
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ['image', 'labels', 'hand', 'other', 'hand']
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['sky', 'road']
    with pytest.raises(ValueError, match='hand and b have other test images or classes'):
        draw_predictions([HAND, replace(HAND, name='b', classes=('a', 'b'))])
    with pytest.raises(ValueError, match='hand and b have other test images'):
        draw_predictions([HAND, replace(HAND, name='b', images=[HAND.images[0] + 1])])
