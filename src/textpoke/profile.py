# SPDX-License-Identifier: Apache-2.0
"""The profile tracer's tables, read from the target's rings while it runs; nothing is stopped."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from textpoke import clock
from textpoke._native import ffi, lib
from textpoke.profile_rows import ProfileRow
from textpoke.wire import plausible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke._native import Pointer
    from textpoke.ring_sets import RingSet

_ROW = struct.Struct(f"<8Q{lib.TP_PROFILE_BUCKETS}I")
_CLEARED = _ROW.pack(*[0] * 8, (1 << 32) - 1, *[0] * (lib.TP_PROFILE_BUCKETS - 1))[8:]
_PLACE_BYTES = 16


@dataclass(frozen=True, slots=True)
class Counted:
    """How much was counted.

    Attributes:
        calls: Of all functions.
        functions: Those that were called.
        lost: Calls for which a thread's table had no room, or of threads that had none.
    """

    calls: int = 0
    functions: int = 0
    lost: int = 0


def counted(rings: RingSet) -> Counted:
    """The sums of what `read` gives."""
    rows = read(rings)
    calls = sum(plausible(row.hits) for row in rows.values())
    return Counted(calls, len(rows), lost(rings))


def read(rings: RingSet) -> dict[int, ProfileRow]:
    """All functions that were called, by return address of the site, summed over the threads.

    A row is read while its thread writes: hits and times may differ by a call.
    """
    found: dict[int, ProfileRow] = {}
    for values in _rows(rings):
        if values[0] and values[1]:
            found.setdefault(values[0], ProfileRow(values[0])).add(values)
    return found


def per_thread(rings: RingSet) -> Iterator[tuple[int, dict[int, ProfileRow]]]:
    """The same thread by thread; a ring that passed from thread to thread counts for the last."""
    for number in range(rings.layout.ring_count if rings.layout else 0):
        tid = _head(rings, number).tid
        rows = {v[0]: v for v in _rows_of(rings, number) if v[0] and v[1]}
        if tid and rows:
            found = {address: ProfileRow(address) for address in rows}
            for address, values in rows.items():
                found[address].add(values)
            yield int(tid), found


def lost(rings: RingSet) -> int:
    """Calls for which a thread's table had no room, or of threads that had none."""
    count = rings.layout.ring_count if rings.layout else 0
    dropped = sum(int(_head(rings, number).dropped) for number in range(count))
    return plausible(dropped + rings.without_ring())


def clear(rings: RingSet) -> None:
    """Start all counts anew; rows keep their places, calls that are under way add to them."""
    for number in range(rings.layout.ring_count if rings.layout else 0):
        at, count = place_of_rows(rings, number)
        shared = rings.shared
        if shared is None:
            return
        for row in range(count):
            start = at + row * _ROW.size
            shared[start + 8 : start + _ROW.size] = _CLEARED


def _rows(rings: RingSet) -> Iterator[tuple[int, ...]]:
    for number in range(rings.layout.ring_count if rings.layout else 0):
        yield from _rows_of(rings, number)


def _rows_of(rings: RingSet, number: int) -> Iterator[tuple[int, ...]]:
    at, count = place_of_rows(rings, number)
    if rings.shared is not None and count:
        yield from _ROW.iter_unpack(rings.shared[at : at + count * _ROW.size])


def place_of_rows(rings: RingSet, number: int) -> tuple[int, int]:
    """Where the rows of a ring are in its set's memory, and how many are in use.

    The target writes the number.
    """
    layout = rings.layout
    if layout is None:
        return 0, 0
    places = 64
    while places < 2 * rings.profiled:
        places *= 2
    start = _offset(rings, number) + lib.TP_PAGE_BYTES
    at = start + places * _PLACE_BYTES
    room = (start + layout.ring_bytes - at) // _ROW.size
    used = int(_head(rings, number).rows)
    return at, min(used, room)


def _offset(rings: RingSet, number: int) -> int:
    layout = rings.layout
    return layout.ring_offset + number * layout.ring_stride if layout else 0


def _head(rings: RingSet, number: int) -> Pointer:
    at = int(ffi.cast("uintptr_t", rings.wire)) + _offset(rings, number)
    return ffi.cast("struct tp_ring *", at)


def as_json(rings: RingSet) -> dict[str, object]:
    """The whole, for the end of a capture.

    A row: [address, hits, total, self, max, squares, overruns, {bucket: count}], times in ticks.
    """
    rows = [
        [
            row.address,
            plausible(row.hits),
            plausible(row.total),
            plausible(row.self),
            plausible(row.max),
            str(row.squares),  # may be more than a number in JSON holds
            row.overruns,
            {str(i): count for i, count in enumerate(row.buckets) if count},
        ]
        for row in read(rings).values()
    ]
    return {"rows": rows, "lost": lost(rings), "ns_per_tick": clock.ns_per_tick()}
