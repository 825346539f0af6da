# SPDX-License-Identifier: Apache-2.0
"""What was written into the target's code, poke by poke."""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

from textpoke import pokes
from textpoke.callers import Callers
from textpoke.decode import Clock
from textpoke.report.layout import columns, time_text
from textpoke.report.names import escape, site_label

if TYPE_CHECKING:
    from collections.abc import Iterator

    from textpoke.capture import Capture
    from textpoke.pokes import Batch, Written

FORMAT_VERSION = 1


def lines(capture: Capture, *, limit: int | None = None) -> Iterator[str]:
    """A summary, then a table for each batch.

    Args:
        capture: Open.
        limit: At most so many pokes of each batch; None for all.

    Raises:
        CaptureFormat: A block is damaged.
    """
    total, batches = pokes.count(capture), len(capture.pokes)
    yield f"{total:,} pokes of code in {batches:,} batches"
    with Callers(capture) as callers:
        yield from _tables(capture, _Near(capture, callers), limit)


def _tables(capture: Capture, near: _Near, limit: int | None) -> Iterator[str]:
    clock = Clock(capture)
    for batch in pokes.read(capture):
        begin, end = _times(clock, batch)
        took = time_text(end - begin, known=clock.known)
        fate = ", given up: some may not have been written" if batch.failed else ""
        yield ""
        yield (
            f"at {time_text(begin, known=clock.known)}: {len(batch.pokes):,} pokes in {took}{fate}"
        )
        shown = batch.pokes[:limit]
        rows = [(f"{p.address:#x}", p.old.hex(" "), p.new.hex(" "), near.name(p)) for p in shown]
        yield from columns(
            ("ADDRESS", "OLD", "NEW", "FUNCTION"), rows, left=("OLD", "NEW", "FUNCTION")
        )
        if len(shown) < len(batch.pokes):
            yield f"... and {len(batch.pokes) - len(shown):,} more"


def records(capture: Capture, *, limit: int | None = None) -> dict[str, object]:
    """The same as one JSON object; times in nanoseconds since the start. Raises as `lines`."""
    with Callers(capture) as callers:
        found = _batches(capture, _Near(capture, callers), limit)
    return {
        "version": FORMAT_VERSION,
        "capture": capture.path,
        "cut_off": capture.cut_off,
        "time_known": Clock(capture).known,
        "batches": found,
    }


def _batches(capture: Capture, near: _Near, limit: int | None) -> list[dict[str, object]]:
    clock, found = Clock(capture), []
    for batch in pokes.read(capture):
        begin, end = _times(clock, batch)
        rows = [
            {
                "address": p.address,
                "old": p.old.hex(),
                "new": p.new.hex(),
                "function": near.name(p) or None,
            }
            for p in batch.pokes[:limit]
        ]
        found.append(
            {
                "start_ns": begin,
                "end_ns": end,
                "failed": batch.failed,
                "count": len(batch.pokes),
                "pokes": rows,
            }
        )
    return found


def _times(clock: Clock, batch: Batch) -> tuple[int, int]:
    begin, end = clock.ns(np.array([batch.from_tsc, batch.to_tsc], np.uint64)).tolist()
    return int(begin), int(end)


class _Near:
    """Names places: by the sites of the capture, else by the symbols of its modules."""

    _LONGEST = 15

    def __init__(self, capture: Capture, callers: Callers) -> None:
        self._callers = callers
        sites = sorted((site.address, i) for i, site in enumerate(capture.meta.sites))
        self._capture = capture
        self._addresses = [address for address, _ in sites]
        self._sites = [index for _, index in sites]

    def name(self, poke: Written) -> str:
        """The function that the poke is in; "" when it is in none: code of ours that leads on."""
        at = bisect_right(self._addresses, poke.address)  # an event has the address behind a site
        if at < len(self._addresses) and self._addresses[at] - poke.address <= self._LONGEST:
            return site_label(self._capture, self._sites[at])
        name, _, offset = (self._callers.name(poke.address + 1) or "").rpartition("+0x")
        if not name:
            return escape(self._callers.place(poke.address) or "")
        behind = int(offset, 16) - 1
        return escape(f"{name}+{behind:#x}" if behind else name)
