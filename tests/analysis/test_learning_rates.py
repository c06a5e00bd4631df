"""Curves of learning rates: averages and table by hand, files, and one short training."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from mmseg_repvgg.analysis.learning_rates import (
    Curve,
    _config,
    plot,
    read_curves,
    table,
    write_curve,
)

PROJECT = Path(__file__).parents[2]
CURVE = Curve(0.01, 0, 12, 129, 4, 0, [12.0, *[2.0] * 11], [30.0, *[1.0] * 11], 12.34, 50.0)


def test_averages_and_table_by_hand():
    assert CURVE.smooth[0] == 12
    assert CURVE.smooth[9] == pytest.approx(3)  # (12 + 9 * 2) / 10
    assert CURVE.smooth[10] == 2
    lines = table([CURVE]).splitlines()
    assert lines[2] == '| 0.01 | none | 0 | 12.0 | 30 | 2.00 | 12.3 | 50.0 |'
    broken = dataclasses.replace(CURVE, losses=[*CURVE.losses[:-1], None], miou=None, warm_up=4)
    assert math.isnan(broken.smooth[-1]) and not math.isnan(broken.smooth[-2])
    assert '| 0.01 | 4 | 0 | 12.0 | 30 | not a number | - | 50.0 |' in table([broken])


def test_files(tmp_path):
    other = dataclasses.replace(CURVE, learning_rate=0.003, warm_up=4)
    for curve in (CURVE, other):
        write_curve(curve, tmp_path / 'out')
    assert read_curves(tmp_path / 'out') == [other, CURVE]
    plot([other, CURVE], tmp_path / 'curves.png')
    assert cv2.imread(str(tmp_path / 'curves.png')).shape[0] > 100
    (tmp_path / 'out' / 'x.json').write_text('{}')
    with pytest.raises(ValueError, match=r'x\.json is not a curve of mmseg-repvgg learning-rates'):
        read_curves(tmp_path / 'out')
    with pytest.raises(ValueError, match='holds no curves'):
        read_curves(tmp_path)


def test_what_is_trained():
    cfg = _config(Curve(0.03, 40, seed=1), Path('scenes'))
    sgd = dict(type='SGD', lr=0.03, momentum=0.9, weight_decay=5e-4)  # mmseg's schedules
    assert cfg.optim_wrapper.optimizer == sgd
    rise, poly = cfg.param_scheduler
    assert (rise.type, rise.begin, rise.end, poly.begin) == ('LinearLR', 0, 40, 40)
    crops = [t.crop_size for t in cfg.train_dataloader.dataset.pipeline if t.type == 'RandomCrop']
    assert crops == [(129, 129)] == [cfg.model.data_preprocessor.size]
    assert cfg.val_dataloader.dataset.data_root == 'scenes'
    (poly,) = _config(Curve(0.03, 0, seed=1), Path('scenes')).param_scheduler
    assert poly.type == 'PolyLR' and poly.begin == 0


@pytest.mark.slow
def test_the_tool_trains_what_is_missing(tmp_path):
    words = ['out', '--rates', '0.01', '--warm-ups', '0', '2', '--iterations', '3', '--crop', '65']
    command = [sys.executable, PROJECT / 'tools' / 'learning_rates.py', *words]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    curves = read_curves(tmp_path / 'out')
    assert [curve.warm_up for curve in curves] == [0, 2]
    assert all(len(curve.losses) == 3 and curve.miou > 0 for curve in curves)
    assert curves[0].losses[0] == pytest.approx(curves[1].losses[0])  # the same start
    assert curves[0].losses[1] != pytest.approx(curves[1].losses[1], abs=1e-3)  # other rates
    assert 'Iter(train)' not in done.stdout  # the second time nothing was left to train
    assert table(curves) in done.stdout
