# SPDX-License-Identifier: Apache-2.0
"""Functions with triggers, recorded beside a recording that nobody drains: the flight recorder's.

They get a probe of their own, which writes to small rings of their own: at every call, or only
when one took long. So what is looked at every two milliseconds is a few events, whatever the
program does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from textpoke import clock
from textpoke.one_trace import Trace
from textpoke.streams import RawBlock, Tap
from textpoke.tracer_names import FUNCTION, GRAPH
from textpoke.tracers import Options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from textpoke.model import Site
    from textpoke.triggers import Trigger

    Placed = Sequence[tuple[Site, Trigger]]

_RING_BYTES = 1 << 18
_OF_SLOW = 1 << 16
"""Rings of both kinds have numbers of their own."""


class Watch:
    """The traces of one recording's triggers.

    Args:
        of: The recording's own trace.

    Attributes:
        durations: By return address: where in an EXIT's data the duration stands.
        refused: (site, reason) of functions whose triggers cannot act.
    """

    def __init__(self, of: Trace) -> None:
        self._of = of
        self._tap = Tap()
        self._parts: dict[str, Trace] = {}  # by tracer
        self._left: list[RawBlock] = []
        self._over_ns = 0
        self.durations: dict[int, int] = {}
        self.refused: list[tuple[Site, str]] = []

    def place(self, placed: Placed) -> None:
        """Have probes where these triggers need them, and nowhere else. Raises as `Trace.start`."""
        slow = {site.address: site for site, trigger in placed if trigger.over_ns}
        plain = {site.address: site for site, trigger in placed if not trigger.over_ns}
        over_ns = min((t.over_ns for _, t in placed if t.over_ns), default=0)
        if over_ns != self._over_ns:
            self._end(GRAPH)
            self._over_ns = over_ns
        self._choose(GRAPH, list(slow.values()))
        self._choose(FUNCTION, list(plain.values()))
        part = self._parts.get(GRAPH)
        self.durations = part.durations if part is not None else {}
        self.refused = [refused for part in self._parts.values() for refused in part.refused]

    @property
    def return_addresses(self) -> dict[int, int]:
        """What events call each site that is watched: its return address, by its own."""
        return {a: r for part in self._parts.values() for a, r in part.return_addresses.items()}

    def take(self) -> tuple[list[RawBlock], bool]:
        """What was written since the last time, and whether none of it is half written."""
        found, self._left = self._left, []
        complete = True
        for tracer, part in self._parts.items():
            complete &= not part.drain().incomplete
            found += self._tapped(tracer)
        return found, complete

    @property
    def lost(self) -> int:
        """Calls that no trigger has seen."""
        return sum(part.lost for part in self._parts.values())

    def stop(self) -> None:
        """Take the probes away; `take` still gives what they have written."""
        for tracer in list(self._parts):
            self._end(tracer)

    def close(self) -> None:
        """Close the tap; a second call does nothing."""
        self._tap.close()

    def _choose(self, tracer: str, sites: list[Site]) -> None:
        part = self._parts.get(tracer)
        if not sites:
            self._end(tracer)
        elif part is None:
            self._parts[tracer] = self._begin(tracer, sites)
        elif {site.address for site in sites} != {site.address for site in part.chosen}:
            part.choose(sites)

    def _begin(self, tracer: str, sites: list[Site]) -> Trace:
        ticks = round(self._over_ns / clock.ns_per_tick()) if tracer == GRAPH else 0
        part = Trace(
            self._of.target,
            sites,
            mode=self._of.mode,
            traps=self._of.traps,
            tracer=tracer,
            options=Options(threshold_ticks=ticks),
            name=f"{self._of.name} triggers {tracer}",
            ring_bytes=_RING_BYTES,
        )
        part.divert(self._tap.fd, lambda _fd: None)
        part.start()
        return part

    def _end(self, tracer: str) -> None:
        part = self._parts.pop(tracer, None)
        if part is not None:
            part.stop()
            self._left += self._tapped(tracer)

    def _tapped(self, tracer: str) -> Iterator[RawBlock]:
        offset = _OF_SLOW if tracer == GRAPH else 0
        for block in self._tap.take():
            yield replace(block, ring=block.ring + offset)
