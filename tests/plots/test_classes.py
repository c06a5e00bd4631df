"""Confusion matrices: by hand, against mmseg's metric, and of a model."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from mmseg.evaluation import IoUMetric

from mmseg_repvgg import cli
from mmseg_repvgg.engine import launch
from mmseg_repvgg.plots.classes import (
    Confusion,
    ConfusionMatrix,
    draw_classes,
    draw_confusion,
    measure_confusion,
)
from tests.common import randomise_batchnorms, runner_cfg
from tests.plots.labels import overlapping

# 8 pixels of sky, 2 as road; 4 of road, 1 as sky; no pixel of a sign in truth or prediction
HAND = Confusion('hand', ('sky', 'road', 'sign'), np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]))
CITYSCAPES = (
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'terrain', 'sky', 'person', 'rider', 'car', 'truck', 'bus', 'train',
    'motorcycle', 'bicycle',
)  # fmt: skip


def counted(tmp_path, predicted, labels, classes=HAND.classes, ignore_index=255):
    """What the metric writes for label maps (H, W)."""
    metric = ConfusionMatrix(str(tmp_path / 'new/x.json'), 'x', ignore_index)
    metric.dataset_meta = dict(classes=classes)
    for pair in zip(predicted, labels, strict=True):
        maps = (dict(data=torch.as_tensor(values)[None]) for values in pair)
        metric.process(None, [dict(zip(('pred_sem_seg', 'gt_sem_seg'), maps, strict=True))])
    assert metric.evaluate(len(labels)) == {}
    return Confusion.read(tmp_path / 'new/x.json')


def test_shares_and_iou_by_hand():
    assert np.array_equal(HAND.shares[:2], [[75, 25, 0], [25, 75, 0]])
    assert np.isnan(HAND.shares[2]).all()
    assert HAND.iou[:2].tolist() == pytest.approx([100 * 6 / 9, 100 * 3 / 6])
    assert np.isnan(HAND.iou[2])


def test_counts_by_hand(tmp_path):
    """The last pixel is ignored."""
    found = counted(tmp_path, [[[0, 1], [1, 2]]], [[[0, 0], [1, 255]]])
    assert found.pixels.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert (found.name, found.classes) == ('x', HAND.classes)
    found = counted(tmp_path, [[[0, 1], [1, 2]]], [[[0, 0], [1, 2]]], ignore_index=0)
    assert found.pixels.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_iou_is_that_of_mmseg(tmp_path):
    predicted, labels = np.random.default_rng(0).integers(0, 3, (2, 2, 20, 30))
    labels[:, :5] = 255
    found = counted(tmp_path, predicted, labels)
    pairs = zip(torch.as_tensor(predicted), torch.as_tensor(labels), strict=True)
    areas = [IoUMetric.intersect_and_union(p, t, 3, 255)[:2] for p, t in pairs]
    intersect, union = (sum(area).numpy() for area in zip(*areas, strict=True))
    assert found.iou == pytest.approx(100 * intersect / union)


def test_what_is_drawn():
    figure = draw_confusion(HAND)
    axes = figure.axes[0]
    assert np.array_equal(axes.images[0].get_array(), HAND.shares, equal_nan=True)
    assert {(*t.get_position(), t.get_text()) for t in axes.texts} == {
        (0, 0, '75'), (1, 0, '25'), (0, 1, '25'), (1, 1, '75')
    }  # fmt: skip
    (axes,) = draw_classes([HAND], sort=True).axes
    assert [t.get_text() for t in axes.texts] == ['66.7', '50.0', 'in no image']
    (text,) = axes.get_legend().get_texts()
    assert text.get_text() == 'hand, mIoU 58.33'
    worse = Confusion('worse', HAND.classes, HAND.pixels[::-1, ::-1].copy())
    (axes,) = draw_classes([worse, HAND], sort=True).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ['sign', 'road', 'sky']


@pytest.mark.parametrize('classes', [CITYSCAPES, CITYSCAPES[:2]])
def test_no_labels_overlap(classes):
    count = len(classes)
    pixels = np.random.default_rng(0).integers(1, 9, (count, count)) + 900 * np.eye(
        count, dtype=int
    )
    models = [Confusion(f'pspnet_repvgg_{i}', classes, pixels) for i in range(3)]
    assert overlapping(draw_confusion(models[0])) == []
    assert overlapping(draw_classes(models)) == []


@pytest.mark.slow
def test_a_model(scenes, tmp_path, monkeypatch, capsys):
    """One pass gives both pictures and the numbers, which are those of mmengine's test."""
    monkeypatch.chdir(tmp_path)
    init_default_scope('mmseg')
    cfg = runner_cfg(scenes, 'work')
    torch.save(randomise_batchnorms(MODELS.build(cfg.model)).state_dict(), 'a.pth')
    found = measure_confusion(cfg, 'a.pth', tmp_path / 'a.json')
    expected = launch.test(cfg, 'a.pth', work_dir='other')
    assert np.nanmean(found.iou) == pytest.approx(expected['mIoU'], abs=0.006)
    right = found.pixels.trace() / found.pixels.sum()
    assert 100 * right == pytest.approx(expected['aAcc'], abs=0.006)
    assert not (tmp_path / 'work').exists()
    monkeypatch.setattr(launch, 'load_config', lambda *args: cfg)
    cli.main(['plot', 'confusion', 'a.py', 'a.pth', '--out', 'a.png'])
    cli.main(['plot', 'classes', 'a.json', 'a.json', '--sort'])
    assert (
        'wrote a.json\nwrote a_iou.png\nwrote a.png\nwrote classes.png' in capsys.readouterr().out
    )
    for name in ('a.png', 'a_iou.png', 'classes.png'):
        assert (tmp_path / name).stat().st_size > 1000, name


def test_mistakes_are_one_line(tmp_path, monkeypatch, scenes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'other.json').write_text('{"model": 1}')
    HAND.write(tmp_path / 'a.json')
    Confusion('b', ('x',), np.array([[1]])).write(tmp_path / 'b.json')
    for words, part in (
        (['classes', 'nowhere.json'], 'nowhere.json is not a confusion matrix, which mmseg-repvgg'),
        (['classes', 'other.json'], 'other.json is not a confusion matrix'),
        (['classes', 'a.json', 'b.json'], 'hand and b have different classes'),
        (['confusion', 'a.py', 'a.pth', '--out', 'other.png'], 'other.json is not a confusion'),
    ):
        monkeypatch.setattr(launch, 'load_config', lambda *args: runner_cfg(scenes, 'work'))
        with pytest.raises(SystemExit) as end:
            cli.main(['plot', *words])
        assert part in end.value.code and '\n' not in end.value.code
    assert (tmp_path / 'other.json').read_text() == '{"model": 1}'


def test_models_of_one_name_and_score_are_both_drawn():
    one = Confusion('same', ('a', 'b'), np.array([[3, 1], [0, 4]]))
    (axes,) = draw_classes([one, one, one]).axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(set(labels)) == 3
