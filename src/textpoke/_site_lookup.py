# SPDX-License-Identifier: Apache-2.0
"""From instruction pointers to indices in a table of sites, in a few nanoseconds each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2**64 over the golden ratio: multiplicative hashing, Knuth, TAOCP volume 3, section 6.4."""
_SLOTS_PER_SITE = 64
"""With so many one site in a hundred has to share its slot."""
_MAX_SLOT_BITS = 22


class SiteLookup:
    """Finds the index of an instruction pointer in a table of return addresses.

    A hash table of one slot per hash, without chains: what it does not answer (a site that
    lost its slot to another, an address in no table) goes through a binary search. Two loads
    for an event where the binary search alone takes a dozen, badly predicted.

    Args:
        addresses: The table; of equal addresses the first one counts.
    """

    def __init__(self, addresses: Iterable[int]) -> None:
        table = np.array(list(addresses), dtype=np.uint64)
        self._sorted, first = np.unique(table, return_index=True)
        self._index = first.astype(np.int32)
        bits = min((len(table) * _SLOTS_PER_SITE).bit_length(), _MAX_SLOT_BITS)
        self._shift = np.uint64(64 - bits)
        self._slots = np.zeros(1 << bits, dtype=np.int32)
        self._slots[self._hash(self._sorted)] = np.arange(len(self._sorted))

    def find(self, pointers: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Indices into the table as given to the constructor, -1 for addresses not in it."""
        if not len(self._sorted):
            return np.full(len(pointers), -1, dtype=np.int32)
        place = self._slots.take(self._hash(pointers), mode="clip")
        found: NDArray[np.int32] = self._index.take(place, mode="clip")
        rest = np.flatnonzero(self._sorted.take(place, mode="clip") != pointers)
        if len(rest):
            found[rest] = self._search(pointers[rest])
        return found

    def _hash(self, pointers: NDArray[np.uint64]) -> NDArray[np.int64]:
        value = pointers * _MULTIPLIER
        value >>= self._shift
        return value.view(np.int64)

    def _search(self, pointers: NDArray[np.uint64]) -> NDArray[np.int32]:
        place = np.searchsorted(self._sorted, pointers)
        place[place == len(self._sorted)] = 0
        found: NDArray[np.int32] = self._index[place]
        found[self._sorted[place] != pointers] = -1
        return found
