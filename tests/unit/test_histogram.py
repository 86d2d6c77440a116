"""One conformance suite for the histogram and its Python twin."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pysched import _core
from pysched.engine import twin

IMPLEMENTATIONS = pytest.mark.parametrize("make", [_core.Histogram, twin.Histogram], ids=["native", "python"])
Make = Callable[[], Any]

LONGEST = 2**58 - 1
durations = st.one_of(
    st.integers(0, 300),
    st.integers(0, LONGEST),
    st.builds(lambda e, d: min(max(0, 2**e + d), LONGEST), st.integers(0, 58), st.integers(-2, 2)),
)


def filled(make: Make, values: list[int]) -> Any:
    histogram = make()
    for value in values:
        histogram.record(value)
    return histogram


@IMPLEMENTATIONS
@settings(max_examples=400, deadline=None, database=None)
@given(value=durations)
def test_no_value_is_told_wrong_by_more_than_a_128th(make: Make, value: int) -> None:
    histogram = filled(make, [value])
    assert abs(histogram.quantile(0.5) - value) <= Fraction(value, 128)
    ((begin, end, count),) = histogram.cells_in_use()
    assert begin <= value < end
    assert count == 1
    assert filled(make, [begin, end - 1]).cells_in_use() == [(begin, end, 2)]
    if end <= LONGEST:
        assert filled(make, [begin, end]).cells_in_use()[1][0] == end  # no gap up to the next cell


@IMPLEMENTATIONS
@settings(max_examples=150, deadline=None, database=None)
@given(values=st.lists(durations, min_size=1, max_size=60), q=st.floats(0, 1, exclude_min=True))
def test_quantiles_and_mean_err_by_at_most_a_128th_and_quantiles_only_rise(
    make: Make, values: list[int], q: float
) -> None:
    histogram = filled(make, values)
    assert histogram.count == len(values)
    exact = sorted(values)[max(math.ceil(q * len(values)), 1) - 1]
    assert abs(histogram.quantile(q) - exact) <= Fraction(exact, 128)
    mean = Fraction(sum(values), len(values))
    # `mean` is a float: beyond 2^53 it is rounded, too
    assert abs(Fraction(histogram.mean) - mean) <= mean / 128 + mean / 2**52 + Fraction(1, 10**6)
    rising = [histogram.quantile(step / 20) for step in range(1, 21)]
    assert rising == sorted(rising)


@IMPLEMENTATIONS
@settings(max_examples=150, deadline=None, database=None)
@given(one=st.lists(durations, max_size=40), other=st.lists(durations, max_size=40))
def test_merge_is_the_sum_and_since_the_difference(make: Make, one: list[int], other: list[int]) -> None:
    first, second, both = filled(make, one), filled(make, other), filled(make, one + other)
    merged = first.merge(second)
    assert merged.cells_in_use() == both.cells_in_use() == second.merge(first).cells_in_use()
    assert merged.since(first).cells_in_use() == second.cells_in_use()
    assert merged.since(merged).count == 0
    assert (first.count, second.count) == (len(one), len(other))
    if other:
        with pytest.raises(ValueError, match="earlier"):
            first.since(merged)


@settings(max_examples=150, deadline=None, database=None)
@given(values=st.lists(st.tuples(durations, st.integers(0, 5)), max_size=60))
def test_both_hold_the_same(values: list[tuple[int, int]]) -> None:
    native, python = _core.Histogram(), twin.Histogram()
    for value, times in values:
        native.record(value, times)
        python.record(value, times)
    assert native.cells_in_use() == python.cells_in_use()
    assert [native.quantile(q) for q in (0.001, 0.5, 1)] == [python.quantile(q) for q in (0.001, 0.5, 1)]
    assert native.mean == (None if python.mean is None else pytest.approx(python.mean, rel=1e-12))


@IMPLEMENTATIONS
def test_the_ends(make: Make) -> None:
    empty = make()
    assert (empty.count, empty.mean, empty.quantile(0.5), empty.cells_in_use()) == (0, None, None, [])
    century = filled(make, [2**58 - 1, 3 * 10**18])
    assert [count for _, _, count in century.cells_in_use()] == [2]
    for q in (0, 1.01, -1, float("nan")):
        with pytest.raises(ValueError, match="q:"):
            empty.quantile(q)
    with pytest.raises(ValueError, match="ns"):
        empty.record(-1)
    with pytest.raises(TypeError, match="ns"):
        empty.record(1.5)
