"""Curves of trainings, from logs written by hand."""

import json
import math

import pytest

from mmseg_repvgg import cli
from mmseg_repvgg.plots.curves import draw_curves, read_training, read_trainings, running_mean
from tests.plots.labels import overlapping


def log(folder, run, *rows, end='\n'):
    path = folder / run / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(
        '\n'.join(row if isinstance(row, str) else json.dumps(row) for row in rows) + end
    )


def losses(*steps, loss=1.0, **more):
    return [dict(loss=loss, lr=0.1, step=step, **more) for step in steps]


def val(step, score):
    return dict(mIoU=score, aAcc=50.0, step=step)


@pytest.fixture
def resumed(tmp_path):
    """Killed at step 40 while it wrote, resumed from step 20; then a test of the result."""
    work = tmp_path / 'resumed'
    first = [*losses(10, 20, loss=4.0), val(20, 11.0), *losses(30, 40, loss=3.0), val(40, 12.0)]
    log(work, '20260101_000000', *first, '{"loss": 2.', end='')
    log(work, '20260102_000000', *losses(30, 40, 50, loss=2.0), val(50, 20.0))
    log(work, '20260103_000000', val(0, 99.0))
    return work


def test_a_resumed_training_is_joined(resumed):
    training = read_training(resumed)
    assert training.values('loss') == ([10, 20, 30, 40, 50], [4.0, 4.0, 2.0, 2.0, 2.0])
    assert training.values('mIoU') == ([20, 50], [11.0, 20.0])


def test_a_training_that_was_started_anew_replaces_the_first(tmp_path):
    log(tmp_path, '20260101_000000', *losses(10, 20, 30))
    log(tmp_path, '20260102_000000', *losses(10, 20, loss=5.0))
    assert read_training(tmp_path).values('loss') == ([10, 20], [5.0, 5.0])


def test_validations_of_epochs_are_at_their_iterations(tmp_path):
    rows = [*losses(50, 100, epoch=1), val(1, 7.0), *losses(150, 200, epoch=2), val(2, 8.0)]
    log(tmp_path, '20260101_000000', *rows)
    assert read_training(tmp_path).values('mIoU') == ([100, 200], [7.0, 8.0])


def test_names_that_repeat_are_paths(tmp_path):
    folders = [tmp_path / name / 'work' for name in 'ab']
    for folder in folders:
        log(folder, '20260101_000000', *losses(10))
    assert [training.name for training in read_trainings(folders)] == list(map(str, folders))


def test_running_mean_by_hand():
    assert running_mean([4, 2, 6, 1], 2) == [4, 3, 4, 3.5]
    means = running_mean([1, math.nan, 1, 1], 2)
    assert [math.isnan(mean) for mean in means] == [False, True, True, False]


def test_what_is_drawn(resumed, tmp_path):
    log(tmp_path / 'other', '20260101_000000', *losses(10, 20, loss=7.0))
    trainings = read_trainings([resumed, tmp_path / 'other'])
    figure = draw_curves(trainings, window=2)
    loss, score, rate = figure.axes
    drawn = [line.get_ydata().tolist() for line in loss.lines]
    assert drawn == [[4, 4, 2, 2, 2], [4, 4, 3, 2, 2], [7, 7], [7, 7]]  # each, then the means
    assert score.lines[0].get_xydata().tolist() == [[20, 11], [50, 20]]
    assert rate.lines[0].get_ydata().tolist() == [0.1] * 5
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ['resumed', 'other']
    assert overlapping(figure) == []
    figure = draw_curves(trainings[1:])  # without a validation
    assert [axes.get_ylabel() for axes in figure.axes] == ['training loss', 'learning rate']


def test_the_command(resumed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(['plot', 'curves', 'resumed', '--out', 'a.svg'])
    assert capsys.readouterr().out == 'wrote a.svg\n'
    cli.main(['plot', 'curves', 'resumed'])
    assert (tmp_path / 'a.svg').stat().st_size > 1000 < (tmp_path / 'curves.png').stat().st_size


@pytest.mark.parametrize(
    ('words', 'parts'),
    [
        (['nowhere'], ("plot curves: error: no log of a training found in 'nowhere'", 'vis_data')),
        (['tested'], ("no log of a training found in 'tested'",)),
        (['damaged'], ('scalars.json, line 1 is not a row of a log',)),
        (['resumed', '--out', 'a.jpg'], ("'a.jpg' must end in .png or .svg",)),
        (['resumed', '--smooth', '0'], ('smooth=0 must be an integer, at least 1',)),
    ],
)
def test_mistakes_are_one_line(resumed, tmp_path, monkeypatch, words, parts):
    log(tmp_path / 'tested', '20260101_000000', val(0, 99.0))
    log(tmp_path / 'damaged', '20260101_000000', 'not JSON', *losses(1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(['plot', 'curves', *words])
    assert all(part in end.value.code for part in parts), end.value.code
    assert '\n' not in end.value.code
