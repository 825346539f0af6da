# SPDX-License-Identifier: Apache-2.0
"""Rows of the profile as the target has them: the last call stands apart."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from textpoke._native import lib
from textpoke.profile_rows import BUCKETS, ProfileRow, bucket_of, bucket_range

NONE = (1 << 32) - 1


def row_of(calls: list[int]) -> tuple[int, ...]:
    """What profile.S leaves after these calls."""
    squares, last, buckets = 0, 0, [NONE] + [0] * (BUCKETS - 1)
    for ticks in calls:
        squares += last * last
        place = bucket_of(last)
        buckets[place] = (buckets[place] + 1) & NONE
        last = ticks
    low, high = squares & (1 << 64) - 1, squares >> 64
    total = sum(calls)
    return (1, len(calls), total, total, max(calls, default=0), low, high, last, *buckets)


def test_the_number_of_buckets_is_that_of_the_target() -> None:
    assert BUCKETS == lib.TP_PROFILE_BUCKETS


@pytest.mark.parametrize("number", range(BUCKETS))
def test_a_bucket_holds_its_range(number: int) -> None:
    low, high = bucket_range(number)
    assert bucket_of(low) == bucket_of(high - 1) == number
    assert bucket_of(high) == min(number + 1, BUCKETS - 1)


@given(st.lists(st.integers(0, 1 << 40), max_size=20))
def test_the_last_call_counts(calls: list[int]) -> None:
    row = ProfileRow(1)
    row.add(row_of(calls))
    assert row.hits == sum(row.buckets) == len(calls)
    assert row.squares == sum(ticks * ticks for ticks in calls)
    for number, count in enumerate(row.buckets):
        assert count == sum(bucket_of(ticks) == number for ticks in calls)


def test_threads_add_up() -> None:
    row = ProfileRow(1)
    row.add(row_of([3, 100]))
    row.add(row_of([100]))
    assert (row.hits, row.total, row.squares) == (3, 203, 20009)
    assert (row.buckets[0], row.buckets[bucket_of(100)]) == (1, 2)


def test_a_first_call_that_is_half_noted_is_no_four_billion() -> None:
    values = list(row_of([]))
    values[1], values[7] = 1, 50
    row = ProfileRow(1)
    row.add(tuple(values))
    assert sum(row.buckets) == 1
