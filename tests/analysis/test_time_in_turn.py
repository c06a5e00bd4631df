"""Timing in turn."""

import math

import pytest

from mmseg_repvgg.analysis.time_in_turn import paired_ratio, time_in_turn


def test_calls_alternate_and_warm_up_is_not_counted():
    order = []
    seconds = time_in_turn(
        dict(a=lambda: order.append('a'), b=lambda: order.append('b')), repeats=3, warm_up=2
    )
    assert order == ['a', 'b'] * 5
    assert {name: len(times) for name, times in seconds.items()} == {'a': 3, 'b': 3}
    with pytest.raises(ValueError, match='need calls and repeats'):
        time_in_turn({}, repeats=3)


def test_ratios_by_hand():
    # The rounds' ratios are e^0.1, e^0.2 and e^0.3: mean logarithm 0.2, standard deviation 0.1,
    # and Student's t for two degrees of freedom is 4.303.
    fast = [1.0, 10.0, 3.0]
    slow = [second * math.exp(log) for second, log in zip(fast, (0.1, 0.2, 0.3), strict=True)]
    half = 4.3026527 * 0.1 / math.sqrt(3)
    ratio = paired_ratio(slow, fast)
    assert [math.log(x) for x in (ratio.value, ratio.low, ratio.high)] == pytest.approx(
        [0.2, 0.2 - half, 0.2 + half]
    )
    assert not ratio.is_decided
    assert str(ratio) == '1.22 (0.95 to 1.57, undecided)'
    doubled = paired_ratio(slow, fast, scale=2)
    assert doubled.value == pytest.approx(2 * ratio.value)
    assert str(doubled) == '2.44 (1.91 to 3.13)'
    inverse = paired_ratio(fast, slow)
    assert inverse.low == pytest.approx(1 / ratio.high)


def test_a_drift_that_both_share_cancels():
    drift = [1.0, 2.0, 4.0, 8.0]
    ratio = paired_ratio([1.1 * x for x in drift], drift)
    assert ratio.low == pytest.approx(ratio.high) == pytest.approx(1.1)
    assert ratio.is_decided


def test_ratios_without_an_interval():
    assert str(paired_ratio([3.0], [2.0])) == '1.50 (one round)'
    assert not paired_ratio([3.0], [2.0]).is_decided
    assert str(paired_ratio([3.0, 2.0], [3.0, 2.0])) == '1'
    for wrong in (([], []), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match='need the times of the same rounds'):
            paired_ratio(*wrong)
