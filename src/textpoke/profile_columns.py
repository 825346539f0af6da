# SPDX-License-Identifier: Apache-2.0
"""The profile tracer's tables as columns: for who reads many functions again and again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from textpoke import profile
from textpoke.profile_rows import BUCKETS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from textpoke.ring_sets import RingSet

_ROW = np.dtype(
    [
        ("address", "<u8"),
        ("hits", "<u8"),
        ("total", "<u8"),
        ("self", "<u8"),
        ("max", "<u8"),
        ("squares", "<u8", (2,)),
        ("last", "<u8"),
        ("buckets", "<u4", (BUCKETS,)),
    ]
)
_NONE = np.uint32((1 << 32) - 1)  # in bucket 0 of a row whose first call is not in the histogram
_MOST = np.uint64(1 << 56)  # a target may lie; the sum of 64 such fits


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What was counted of each function that was called, over all threads; times in TSC ticks.

    Attributes:
        address: uint64, return addresses of the sites, ascending.
        hits: int64, calls that have returned.
        total: int64, their time.
        self: int64, of that, not in calls below that are measured too.
        buckets: uint32, shape (n, BUCKETS), modulo 2**32: the histogram of `ProfileRow`.
        lost: Calls for which a thread's table had no room, or of threads that had none.
    """

    address: NDArray[np.uint64]
    hits: NDArray[np.int64]
    total: NDArray[np.int64]
    self: NDArray[np.int64]
    buckets: NDArray[np.uint32]
    lost: int


def read(rings: RingSet) -> Columns:
    """All functions that were called; as `profile.read`, nothing is stopped."""
    count = rings.layout.ring_count if rings.layout else 0
    parts = [rows for number in range(count) if len(rows := _rows_of(rings, number))]
    rows = parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, _ROW), *parts])
    return merge(rows, profile.lost(rings))


def merge(rows: NDArray[Any], lost: int) -> Columns:
    """Rows of all threads, as the target has them, added up by function."""
    used = np.flatnonzero((rows["address"] != 0) & (rows["hits"] != 0))
    rows = rows[used[np.argsort(rows["address"][used], kind="stable")]]
    histograms = _complete(rows)
    address, first = np.unique(rows["address"], return_index=True)
    if not len(first):
        nothing = np.empty(0, np.int64)
        return Columns(address, nothing, nothing, nothing, histograms, lost)

    def added(name: str) -> NDArray[np.int64]:
        column = np.minimum(rows[name], _MOST).astype(np.int64)
        sums: NDArray[np.int64] = np.add.reduceat(column, first)
        return sums

    buckets = histograms
    if len(first) < len(rows):  # some were called by several threads
        buckets = np.add.reduceat(histograms, first, axis=0, dtype=np.uint32)
    return Columns(address, added("hits"), added("total"), added("self"), buckets, lost)


def _rows_of(rings: RingSet, number: int) -> NDArray[Any]:
    at, count = profile.place_of_rows(rings, number)
    if rings.shared is None or count <= 0:
        return np.empty(0, _ROW)
    return np.frombuffer(rings.shared[at : at + count * _ROW.itemsize], _ROW)


def _complete(rows: NDArray[Any]) -> NDArray[np.uint32]:
    """Histograms with each row's last call, which stands apart in the target (wire.h)."""
    found: NDArray[np.uint32] = rows["buckets"].copy()
    number = np.arange(len(rows))
    found[number, buckets_of(rows["last"])] += np.uint32(1)
    first = found[:, 0]
    first[first == _NONE] = 0  # the first call has come, and what makes up for it not yet
    return found


def buckets_of(ticks: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The bucket of each call, as `profile_rows.bucket_of`."""
    capped = np.minimum(ticks, np.uint64(1 << 50))  # exact as float; the last bucket begins below
    octave = np.frexp(capped.astype(np.float64))[1].astype(np.int64) - 3
    shifted = capped.astype(np.int64) >> np.maximum(octave, 0)
    found = np.minimum(4 * octave - 11 + shifted, BUCKETS - 1)
    return np.where(capped < 16, 0, found)
