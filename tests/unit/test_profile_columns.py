# SPDX-License-Identifier: Apache-2.0
"""The profile as columns says what the profile as rows says."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from test_profile_rows import row_of

from textpoke import profile_columns
from textpoke.profile_columns import _ROW, buckets_of
from textpoke.profile_rows import ProfileRow, bucket_of

TICKS = st.integers(0, 1 << 40)
THREADS = st.lists(st.tuples(st.integers(1, 3), st.lists(TICKS, max_size=6)), max_size=8)


@given(THREADS)
def test_columns_are_the_rows_of_all_threads_added_up(threads: list[tuple[int, list[int]]]) -> None:
    raw = [(address, *row_of(calls)[1:]) for address, calls in threads]
    rows: dict[int, ProfileRow] = {}
    for values in raw:
        if values[1]:
            rows.setdefault(values[0], ProfileRow(values[0])).add(values)
    packed = np.array([(*v[:5], v[5:7], v[7], v[8:]) for v in raw], _ROW)
    columns = profile_columns.merge(packed, 0)
    assert columns.address.tolist() == sorted(rows)
    for place, address in enumerate(sorted(rows)):
        row = rows[address]
        assert (columns.hits[place], columns.total[place]) == (row.hits, row.total)
        assert columns.self[place] == row.self
        assert columns.buckets[place].tolist() == row.buckets


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=1))
def test_every_time_has_the_same_bucket(ticks: list[int]) -> None:
    assert buckets_of(np.array(ticks, np.uint64)).tolist() == [bucket_of(t) for t in ticks]


def test_rows_without_a_call_are_left_out() -> None:
    assert not len(profile_columns.merge(np.zeros(3, _ROW), 0).address)
