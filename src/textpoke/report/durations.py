# SPDX-License-Identifier: Apache-2.0
"""How long calls took, exactly, site by site: the values that came up and how often each did.

Times are whole nanoseconds, so that many calls share a value: what is kept grows with the number
of different values, not with the calls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

_LEAST_WAITING = 1 << 20
"""Calls that wait to be folded: sorting a million at once is as fast per call as it gets."""
_KEY_BITS = 63


class Durations:
    """Durations by site; empty at first."""

    def __init__(self) -> None:
        none = np.empty(0, np.int64)
        self._site, self._ns, self._count = none, none, none
        self._waiting: list[tuple[Ints, Ints, Ints]] = []
        self._waiting_rows = 0

    def add(self, site: NDArray[np.int32], ns: Ints) -> None:
        """Add calls, each with its site (-1 or more) and its time (0 or more); both are copied."""
        self._wait(site.astype(np.int64), ns.copy(), np.ones(len(ns), np.int64))

    def merge(self, other: Durations) -> None:
        """Add the calls of another one."""
        other._fold()
        self._wait(other._site, other._ns, other._count)

    def percentiles(self, sites: Ints, *percents: int) -> list[Ints]:
        """For each per cent: the smallest time that so many calls do not exceed, by site.

        Args:
            sites: int64; those without calls get 0.
            percents: 1 to 100.
        """
        self._fold()
        first = np.searchsorted(self._site, sites)
        stop = np.searchsorted(self._site, sites, side="right")
        seen = np.concatenate([np.zeros(1, np.int64), np.cumsum(self._count)])
        calls = seen[stop] - seen[first]
        ns = np.append(self._ns, 0)
        found: list[Ints] = []
        for percent in percents:
            rank = np.maximum(-(-calls * percent // 100), 1)
            row = np.searchsorted(seen, seen[first] + rank) - 1
            found.append(np.where(calls > 0, ns[row], 0))
        return found

    def of(self, site: int) -> tuple[Ints, Ints]:
        """The times of one site, ascending, and how many calls took each; int64."""
        self._fold()
        first, stop = np.searchsorted(self._site, [site, site + 1]).tolist()
        return self._ns[first:stop], self._count[first:stop]

    def _wait(self, site: Ints, ns: Ints, count: Ints) -> None:
        self._waiting.append((site, ns, count))
        self._waiting_rows += len(site)
        if self._waiting_rows >= max(_LEAST_WAITING, len(self._site)):
            self._fold()

    def _fold(self) -> None:
        if not self._waiting_rows:
            return
        parts = [(self._site, self._ns, self._count), *self._waiting]
        site, ns, count = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = _order(site, ns)
        site, ns, count = site[order], ns[order], count[order]
        is_new = np.ones(len(site), bool)
        is_new[1:] = (np.diff(site) != 0) | (np.diff(ns) != 0)
        first = np.flatnonzero(is_new)
        self._site, self._ns = site[first], ns[first]
        self._count = np.add.reduceat(count, first)
        self._waiting, self._waiting_rows = [], 0


def _order(site: Ints, ns: Ints) -> NDArray[np.intp]:
    # By site, then by time; as one number where both fit into it, which is several times faster.
    bits = int(ns.max()).bit_length()
    if bits + int(site.max() + 1).bit_length() <= _KEY_BITS:
        return np.argsort((site + 1 << bits) | ns)
    return np.lexsort((ns, site))
