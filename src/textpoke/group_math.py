# SPDX-License-Identifier: Apache-2.0
"""Sums and searches group by group over whole columns: what analysers of calls are built of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]


def numbered(*columns: NDArray[np.int64] | NDArray[np.uint64]) -> list[Ints]:
    """Columns of one kind of value as small numbers, the same value the same number in all."""
    _, numbers = np.unique(np.concatenate(columns), return_inverse=True)
    ends = np.cumsum([len(column) for column in columns])
    return np.split(numbers.astype(np.int64), ends[:-1])


def _places(group: Ints, time: Ints, of_group: Ints, of_time: Ints) -> Ints:
    # How many of the first, in order of group and time, come before each of the second.
    rows = len(group)
    merged = np.lexsort(
        (
            np.repeat([1, 0], [rows, len(of_group)]),
            np.concatenate([time, of_time]),
            np.concatenate([group, of_group]),
        )
    )
    place = np.empty(len(merged), dtype=np.int64)
    place[merged] = np.cumsum(merged < rows)
    return place[rows:]


def latest_before(group: Ints, time: Ints, of_group: Ints, of_time: Ints) -> Ints:
    """For each of the second: the last of the first in its group and before its time, or -1.

    Of several at one time it is the last one in the order given.
    """
    order = np.lexsort((time, group))
    place = _places(group, time, of_group, of_time) - 1
    return _checked(order, place, group, of_group)


def earliest_after(group: Ints, time: Ints, of_group: Ints, of_time: Ints) -> Ints:
    """For each of the second: the first of the first in its group and after its time, or -1."""
    order = np.lexsort((time, group))
    place = _places(group, time, of_group, of_time + 1)
    return _checked(order, place, group, of_group)


def group_sums(group: Ints, value: Ints) -> Ints:
    """Running sums that begin anew with every group; equal groups stand together."""
    total = np.cumsum(value)
    if not len(group):
        return total
    first = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    before = total[first] - value[first]
    return total - np.repeat(before, np.diff(first, append=len(group)))


def group_minima(group: Ints, value: Ints) -> Ints:
    """Running minima that begin anew with every group; equal groups stand together."""
    if not len(group):
        return value
    # Each group's ranks lie below all those of the group before; ranks, for values may be huge.
    distinct, rank = np.unique(value, return_inverse=True)
    offset = np.cumsum(np.diff(group, prepend=group[0]) != 0) * len(distinct)
    minima: Ints = distinct[np.minimum.accumulate(rank - offset) + offset]
    return minima


def group_maxima(group: Ints, value: Ints) -> Ints:
    """Running maxima that begin anew with every group; equal groups stand together."""
    return -group_minima(group, -value)


def levels(group: Ints, step: Ints) -> Ints:
    """How high each group stands after each step; steps down from 0 have no effect."""
    total = group_sums(group, step)
    return total - np.minimum(group_minima(group, total), 0)


def _checked(order: Ints, place: Ints, group: Ints, of_group: Ints) -> Ints:
    if not len(order):
        return np.full(len(place), -1, dtype=np.int64)
    inside = (place >= 0) & (place < len(order))
    found = order[np.where(inside, place, 0)]
    return np.where(inside & (group[found] == of_group), found, -1).astype(np.int64)
