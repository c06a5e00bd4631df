"""Timing in turn."""

import pytest

from mmseg_repvgg.analysis.time_in_turn import median_ratio, time_in_turn


def test_calls_alternate_and_warm_up_is_not_counted():
    order = []
    seconds = time_in_turn(
        dict(a=lambda: order.append('a'), b=lambda: order.append('b')), repeats=3, warm_up=2
    )
    assert order == ['a', 'b'] * 5
    assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}
    with pytest.raises(ValueError, match='need calls and repeats'):
        time_in_turn({}, repeats=3)


def test_the_ratio_is_the_median_of_the_rounds():
    assert median_ratio([4.0, 30.0, 9.0], [2.0, 10.0, 9.0]) == 2.0
