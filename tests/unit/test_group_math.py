# SPDX-License-Identifier: Apache-2.0
"""Sums and searches group by group equal plain loops."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from textpoke import group_math as gm
from textpoke.spread import histogram, spread, spread_of_all

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-5, 5)), max_size=20)


def columns(rows: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


@settings(deadline=None)
@given(ROWS, ROWS)
def test_latest_before_and_earliest_after(rows, asked) -> None:
    group, time = columns(rows)
    of_group, of_time = columns(asked)
    before = gm.latest_before(group, time, of_group, of_time).tolist()
    after = gm.earliest_after(group, time, of_group, of_time).tolist()
    for (wanted, at), low, high in zip(asked, before, after, strict=True):
        earlier = [t for g, t in rows if g == wanted and t < at]
        later = [t for g, t in rows if g == wanted and t > at]
        assert (low >= 0) == bool(earlier)
        assert (high >= 0) == bool(later)
        if earlier:
            assert rows[low] == (wanted, max(earlier))
        if later:
            assert rows[high] == (wanted, min(later))


@settings(deadline=None)
@given(ROWS.map(sorted), st.sampled_from([1, 1 << 58]))
def test_running_sums_minima_maxima_and_levels(rows, scale) -> None:
    group, value = columns(rows)
    sums, minima, maxima, heights = [], [], [], []
    for index, (g, v) in enumerate(rows):
        fresh = not index or rows[index - 1][0] != g
        sums.append(v if fresh else sums[-1] + v)
        minima.append(v if fresh else min(minima[-1], v))
        maxima.append(v if fresh else max(maxima[-1], v))
        heights.append(max((0 if fresh else heights[-1]) + v, 0))
    assert gm.group_sums(group, value).tolist() == sums
    assert gm.group_minima(group, value * scale).tolist() == [v * scale for v in minima]
    assert gm.group_maxima(group, value * scale).tolist() == [v * scale for v in maxima]
    assert gm.levels(group, value).tolist() == heights


def test_the_same_value_has_the_same_number_in_all_columns() -> None:
    first, second = gm.numbered(np.array([7, 9, 7]), np.array([9, 1]))
    assert first.tolist() == [1, 2, 1]
    assert second.tolist() == [2, 0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), max_size=200))
def test_spread_equals_sorting(rows) -> None:
    for key, count, total, p50, p99, largest in spread(*columns(rows)).rows():
        values = sorted(value for group, value in rows if group == key)
        assert (count, total, largest) == (len(values), sum(values), values[-1])
        assert p50 == values[math.ceil(count * 0.5) - 1]
        assert p99 == values[math.ceil(round(count * 0.99, 6)) - 1]


def test_a_histogram_of_powers_of_two() -> None:
    value = np.array([0, 1, 2, 3, 4, 1023, 1024], dtype=np.int64)
    rows = histogram(value)
    assert [row for row in rows if row[2]] == [
        (0, 1, 1), (1, 2, 1), (2, 4, 2), (4, 8, 1), (512, 1024, 1), (1024, 2048, 1),
    ]  # fmt: skip
    assert histogram(value[5:]) == [(512, 1024, 1), (1024, 2048, 1)]
    assert histogram(value[:0]) == []
    assert len(spread_of_all(value[:0])) == 0
