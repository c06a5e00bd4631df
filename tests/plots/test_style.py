"""The common style: labels that do not overlap, ticks, files; and the stored benchmarks drawn."""

from pathlib import Path

import numpy as np
import pytest

from mmseg_repvgg.benchmark import page
from mmseg_repvgg.benchmark.record import Record
from mmseg_repvgg.benchmark.run import SUITES
from mmseg_repvgg.plots.style import (
    COLOURS,
    bar_height,
    grouped_bars,
    legend_above,
    new_figure,
    place_labels,
    plain_ticks,
    save,
)
from tests.plots.labels import overlapping

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
NEAR = {f'network {i}': (1 + i / 50, 1 + i / 70) for i in range(6)}


def points_figure():
    figure = new_figure(4)
    axes = figure.subplots()
    axes.plot(*zip(*NEAR.values(), strict=True), 'o-')
    axes.set(xlim=(0.5, 1.5), ylim=(0.5, 1.5))
    return figure, axes


def test_labels_of_near_points_do_not_overlap():
    figure, axes = points_figure()
    for name, point in NEAR.items():
        axes.annotate(name, point, textcoords='offset points', xytext=(4, 4))
    assert overlapping(figure)  # the negative control: what was drawn before
    figure, axes = points_figure()
    place_labels(axes, [(name, point, COLOURS[0]) for name, point in NEAR.items()])
    assert overlapping(figure) == []
    assert {note.get_text() for note in axes.texts} == set(NEAR)


def test_a_label_that_leaves_the_figure_is_found():
    figure = new_figure(2)
    figure.text(0.99, 0.5, 'too far right')
    assert overlapping(figure) == [('too far right',)]


@pytest.mark.parametrize(
    ('limits', 'expected'),
    [((3, 65), ['5', '10', '20', '50']), ((1.5, 4.2), ['1.5', '2', '2.5', '3', '3.5', '4'])],
)
def test_ticks_are_plain_numbers(limits, expected):
    figure = new_figure(3)
    axes = figure.subplots()
    axes.set(xscale='log', xlim=limits)
    plain_ticks(axes.xaxis)
    figure.draw_without_rendering()
    low, high = limits
    shown = [t.get_text() for t in axes.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert shown == expected
    assert not any(t.get_text() for t in axes.get_xticklabels(minor=True))


def test_bars_have_their_values_and_missing_ones_a_text():
    figure = new_figure(bar_height(['x', 'y'], {'a': 0, 'b': 0}))
    axes = figure.subplots()
    grouped_bars(axes, ['x', 'y'], {'a': [1.0, 2.5], 'b': [None, 3.0]}, '{:.1f}', 'none')
    legend_above(axes)
    assert [t.get_text() for t in axes.texts] == ['1.0', '2.5', 'none', '3.0']
    assert [bar.get_width() for bar in axes.patches] == [1.0, 2.5, 0, 3.0]
    heights = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert np.allclose(heights, [-0.2125, 0.7875, 0.2125, 1.2125])
    assert overlapping(figure) == []


@pytest.mark.parametrize('name', ['table4.json', 'table8/mnn/table8.json'])
def test_stored_benchmarks_are_drawn_without_overlaps(monkeypatch, name):
    figures = []
    monkeypatch.setattr(page, 'save', lambda figure, path: figures.append(figure))
    record = Record.read(BENCHMARKS / name)
    SUITES[record.benchmark].plot(record, Path('x.png'))
    assert [overlapping(figure) for figure in figures] == [[]]


def test_files(tmp_path):
    figure = new_figure(1)
    for name, start in (('new/a.png', b'\x89PNG'), ('a.svg', b'<?xml')):
        save(figure, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"a\.jpg' must end in \.png or \.svg"):
        save(figure, tmp_path / 'a.jpg')
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.svg', 'new']
