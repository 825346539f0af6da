# SPDX-License-Identifier: Apache-2.0
"""Percentiles by site against a sorted list, however the calls came."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from textpoke.report import durations
from textpoke.report.durations import Durations

CALL = st.tuples(
    st.integers(-1, 4),
    st.one_of(st.integers(0, 9), st.integers(0, 1 << 30), st.integers(0, (1 << 63) - 1)),
)
PARTS = st.lists(st.lists(st.lists(CALL, max_size=20), max_size=4), max_size=4)


def of_calls(chunks: list[list[tuple[int, int]]]) -> Durations:
    found = Durations()
    for chunk in chunks:
        sites = np.array([site for site, _ in chunk], np.int32)
        found.add(sites, np.array([ns for _, ns in chunk], np.int64))
    return found


@settings(deadline=None)
@given(PARTS, st.integers(1, 8), st.lists(st.integers(1, 100), min_size=1, max_size=3))
def test_equals_a_sorted_list(
    parts: list[list[list[tuple[int, int]]]], waiting: int, percents: list[int]
) -> None:
    together = Durations()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durations, "_LEAST_WAITING", waiting)
        for part in parts:
            together.merge(of_calls(part))
    calls = [call for part in parts for chunk in part for call in chunk]
    sites = np.arange(-1, 6)
    found = together.percentiles(sites, *percents)
    for i, site in enumerate(sites.tolist()):
        mine = sorted(ns for of, ns in calls if of == site)
        for percent, column in zip(percents, found, strict=True):
            exact = mine[max(-(-len(mine) * percent // 100), 1) - 1] if mine else 0
            assert column[i] == exact
        ns, count = together.of(site)
        assert list(zip(ns.tolist(), count.tolist(), strict=True)) == sorted(Counter(mine).items())


def test_memory_grows_with_different_durations_alone() -> None:
    found = Durations()
    for _ in range(40):
        found.add(np.zeros(1 << 16, np.int32), np.arange(1 << 16, dtype=np.int64) % 100)
    ns, count = found.of(0)
    assert (len(ns), int(count.sum())) == (100, 40 << 16)


def test_what_was_added_is_copied() -> None:
    site, ns = np.zeros(1, np.int32), np.full(1, 7, np.int64)
    found = Durations()
    found.add(site, ns)
    site[0], ns[0] = 1, 9
    assert found.of(0)[0].tolist() == [7]
