# SPDX-License-Identifier: Apache-2.0
"""What `stacktrace` triggers have noted: as lines among the events, and for JSON."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from textpoke._site_lookup import SiteLookup
from textpoke.calls import times_without_exits, tracers_of
from textpoke.report.names import escape, function_labels
from textpoke.tracer_names import FUNCTION, NOP
from textpoke.trigger_notes import stack_traces

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from textpoke.capture import Capture
    from textpoke.decode import Clock, Events
    from textpoke.trigger_notes import StackTrace

TITLE = "<stack trace>"
_LAST_FUNCTIONS = f"{TITLE} (the last functions, not open calls)"


@dataclass(frozen=True, slots=True)
class ShownStack:
    """A stack with names.

    Attributes:
        ts_ns: When, since the capture's first clock point.
        tid: Of which thread.
        title: The line above it.
        frames: A line for each function, the innermost first.
    """

    ts_ns: int
    tid: int
    title: str
    frames: list[str]


class Stacks:
    """The stacks of a capture, on their way to their places among its events.

    Args:
        capture: Open.
        clock: Of the same capture.
        symbol: Gives names for addresses that no site has.
    """

    def __init__(
        self, capture: Capture, clock: Clock, symbol: Callable[[int], str | None] | None
    ) -> None:
        found = _stack_traces(capture)
        self._labels = function_labels(capture) if found else []
        self._symbol = symbol
        sites = _sites(capture, found)
        times_ns = clock.ns(np.array([one.tsc for one in found], np.uint64)).tolist()
        self._waiting = [
            self._shown(one, ts_ns, sites) for one, ts_ns in zip(found, times_ns, strict=True)
        ]
        self._next = 0

    def before_end_of(self, events: Events) -> list[tuple[int, ShownStack]]:
        """Those that stand before one of these events, with its row; by time.

        A stack stands behind the event that it is of. What may be later than these events waits.
        """
        if not len(events) or self._next == len(self._waiting):
            return []
        last_ns = int(events.ts_ns[-1])
        stop = bisect_left(self._waiting, last_ns, self._next, key=lambda one: one.ts_ns)
        found, self._next = self._waiting[self._next : stop], stop
        rows = np.searchsorted(events.ts_ns, [one.ts_ns for one in found], "right")
        return list(zip(rows.tolist(), found, strict=True))

    def rest(self) -> list[ShownStack]:
        """Those behind the last event."""
        found, self._next = self._waiting[self._next :], len(self._waiting)
        return found

    def _shown(self, one: StackTrace, ts_ns: int, sites: dict[int, int]) -> ShownStack:
        title = TITLE if one.open_calls else _LAST_FUNCTIONS
        frames = [f" => {self._name(address, sites[address])}" for address, _ in one.frames]
        return ShownStack(ts_ns, one.tid, title, frames)

    def _name(self, address: int, site: int) -> str:
        if site >= 0:
            return self._labels[site]
        name = self._symbol(address) if self._symbol else None
        return escape(name) if name else f"{address:#x}"


def stack_records(capture: Capture, clock: Clock) -> list[dict[str, object]]:
    """The same for JSON; times in nanoseconds since the start."""
    found = _stack_traces(capture)
    sites = _sites(capture, found)
    return [
        {
            "trigger": one.trigger,
            "tid": one.tid,
            "ts_ns": _ns(clock, one.tsc),
            "open_calls": one.open_calls,
            "frames": [
                {**_names(capture, sites[address]), "address": address, "since_ns": _ns(clock, tsc)}
                for address, tsc in one.frames
            ],
        }
        for one in found
    ]


def _stack_traces(capture: Capture) -> list[StackTrace]:
    # Who noted them had seen no end of a call yet, maybe: where ends are recorded, that says that
    # all of these calls are open.
    if tracers_of(capture) <= {FUNCTION, NOP}:
        return stack_traces(capture)
    spans = times_without_exits(capture)
    return [
        replace(one, open_calls=one.open_calls or not any(a <= one.tsc < b for a, b in spans))
        for one in stack_traces(capture)
    ]


def _names(capture: Capture, site: int) -> dict[str, str | None]:
    if site < 0:
        return {"module": None, "function": None}
    name = capture.meta.sites[site]
    return {"module": name.module, "function": name.function}


def _ns(clock: Clock, tsc: int) -> int:
    return int(clock.ns(np.array([tsc], np.uint64))[0])


def _sites(capture: Capture, found: Sequence[StackTrace]) -> dict[int, int]:
    # By the address of a frame; -1 for one that no site has.
    addresses = sorted({address for one in found for address, _ in one.frames})
    lookup = SiteLookup(site.address for site in capture.meta.sites)
    sites = lookup.find(np.array(addresses, np.uint64)).tolist() if addresses else []
    return dict(zip(addresses, sites, strict=True))
