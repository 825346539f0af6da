# SPDX-License-Identifier: Apache-2.0
"""How long calls took, exactly, site by site: the values that came up and how often each did.

Times are whole nanoseconds, so that many calls share a value: what is kept grows with the number
of different values, not with the calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_LEAST_WAITING = 1 << 20
"""Calls that wait to be folded: sorting a million at once is as fast per call as it gets."""
_KEY_BITS = 63


@dataclass(frozen=True, slots=True)
class _Table:
    # Columns by site, then by time; no two rows have both in common.
    site: Ints
    ns: Ints
    count: Ints


_NOTHING = _Table(*(np.empty(0, np.int64) for _ in range(3)))


class Durations:
    """Durations by site; empty at first."""

    def __init__(self) -> None:
        self._table = _NOTHING
        self._waiting: list[tuple[NDArray[np.int32], Ints]] = []
        self._waiting_calls = 0

    def add(self, site: NDArray[np.int32], ns: Ints) -> None:
        """Add calls, each with its site (-1 or more) and its time (0 or more); both are copied."""
        self._waiting.append((site.copy(), ns.copy()))
        self._waiting_calls += len(site)
        if self._waiting_calls >= max(_LEAST_WAITING, len(self._table.site)):
            self._fold()

    def merge(self, other: Durations) -> None:
        """Add the calls of another one."""
        self._table = _joined(self._folded(), other._folded())

    def percentiles(self, sites: Ints, *percents: int) -> list[Ints]:
        """For each per cent: the smallest time that so many calls do not exceed, by site.

        Args:
            sites: int64; those without calls get 0.
            percents: 1 to 100.
        """
        table = self._folded()
        first = np.searchsorted(table.site, sites)
        stop = np.searchsorted(table.site, sites, side="right")
        seen = np.concatenate([np.zeros(1, np.int64), np.cumsum(table.count)])
        calls = seen[stop] - seen[first]
        ns = np.append(table.ns, 0)
        found: list[Ints] = []
        for percent in percents:
            rank = np.maximum(-(-calls * percent // 100), 1)
            row = np.searchsorted(seen, seen[first] + rank) - 1
            found.append(np.where(calls > 0, ns[row], 0))
        return found

    def of(self, site: int) -> tuple[Ints, Ints]:
        """The times of one site, ascending, and how many calls took each; int64."""
        table = self._folded()
        first, stop = np.searchsorted(table.site, [site, site + 1]).tolist()
        return table.ns[first:stop], table.count[first:stop]

    def _folded(self) -> _Table:
        if self._waiting_calls:
            self._fold()
        return self._table

    def _fold(self) -> None:
        site, ns = (np.concatenate(column) for column in zip(*self._waiting, strict=True))
        self._waiting, self._waiting_calls = [], 0
        self._table = _joined(self._table, _counted(site.astype(np.int64), ns))


def _counted(site: Ints, ns: Ints) -> _Table:
    site, ns = _sorted(site, ns)
    first = _first_of_each(site, ns)
    return _Table(site[first], ns[first], np.diff(first, append=len(site)))


def _joined(a: _Table, b: _Table) -> _Table:
    if not len(a.site) or not len(b.site):
        return a if len(a.site) else b
    site = np.concatenate([a.site, b.site])
    ns = np.concatenate([a.ns, b.ns])
    key = _key(site, ns)
    # Of numbers, a stable sort merges what is in order already.
    order = np.lexsort((ns, site)) if key is None else np.argsort(key, kind="stable")
    site, ns = site[order], ns[order]
    first = _first_of_each(site, ns)
    count = np.concatenate([a.count, b.count])[order]
    return _Table(site[first], ns[first], np.add.reduceat(count, first))


def _first_of_each(site: Ints, ns: Ints) -> NDArray[np.intp]:
    is_first = np.ones(len(site), bool)
    is_first[1:] = (site[1:] != site[:-1]) | (ns[1:] != ns[:-1])
    return np.flatnonzero(is_first)


def _sorted(site: Ints, ns: Ints) -> tuple[Ints, Ints]:
    key = _key(site, ns)
    if key is None:
        order = np.lexsort((ns, site))
        return site[order], ns[order]
    key.sort()
    bits = _bits(ns)
    return (key >> bits) - 1, key & ((1 << bits) - 1)


def _key(site: Ints, ns: Ints) -> Ints | None:
    # As one number where both fit into it: sorting numbers is many times faster than ordering
    # rows.
    bits = _bits(ns)
    if bits + int(site.max() + 1).bit_length() > _KEY_BITS:
        return None
    key: Ints = ((site + 1) << bits) | ns
    return key


def _bits(ns: Ints) -> int:
    return int(ns.max()).bit_length()
