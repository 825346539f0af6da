# SPDX-License-Identifier: Apache-2.0
"""Where the numbers come from: a process that is traced, its functions switched as they are asked.

One thread at a time may call a source.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from textpoke import clock
from textpoke.filters import FilterSet
from textpoke.flow import CallCounter
from textpoke.one_trace import Trace
from textpoke.overhead import cpu_ns, event_ns
from textpoke.profile_rows import BUCKETS
from textpoke.recording import Recording
from textpoke.report.names import escape
from textpoke.session import RecordSession
from textpoke.streams import Tap
from textpoke.top.model import Function, Sample
from textpoke.top.stretch import Neighbours, neighbours
from textpoke.tracer_names import FUNCTION, GRAPH, PROFILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from textpoke.model import Site
    from textpoke.profile_columns import Columns
    from textpoke.tracer import Target

_DRAIN_S = 0.002  # where there are events
_LOOK_S = 0.05  # where there are none: for modules that come, and for its end
_MOST_EVENTS = 1_000_000
"""Of a stretch with all calls: a second's worth of work to read."""
_STRETCH_S = 0.3
_STRETCH_BYTES = 16 << 20  # of a ring: what comes before the first drain must fit


@dataclass(frozen=True, slots=True)
class Choice:
    """What is traced, as `Target.trace` takes it."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    everything: bool = False
    traps: bool = False
    mode: str = "auto"


class Source(Protocol):
    """What the screen needs to know, and what it can ask for."""

    pid: int
    program: str
    functions: list[Function]
    """They only grow."""
    off: set[int]
    """Indices of those that are switched off."""
    patched: int
    refused: int
    ns_per_tick: float
    with_times: bool

    def wait(self, seconds: float) -> None:
        """Let it run on. Raises TargetExited."""

    def sample(self) -> Sample:
        """What has been counted so far."""

    def switch(self, function: int, *, on: bool) -> None:
        """Trace a function, or do not: one batch."""

    def switch_times(self) -> None:
        """Go over from times to calls alone, or back: one batch."""

    def look_into(self, function: int) -> Neighbours:
        """Who calls a function and whom it calls, by a short stretch with every call."""


class LiveSource:
    """A `Source` on a target; a context manager that switches on and off.

    Args:
        target: Attached; who made it detaches it.
        choice: What is traced.
    """

    def __init__(self, target: Target, choice: Choice) -> None:
        self.pid = target.pid
        self.program = escape(target.program) or "?"
        self.ns_per_tick = clock.ns_per_tick()
        self.functions: list[Function] = []
        self.off: set[int] = set()
        self.patched = self.refused = 0
        self.with_times = True
        self.recording = _recording(target, choice)
        self._target = target
        self._sites: list[Site] = []  # of the functions
        self._place: dict[int, int] = {}  # of a function in them, by return address
        self._tap: Tap | None = None  # takes events where only calls are counted
        self._counter: CallCounter | None = None
        self._counted = np.empty(0, np.int64)  # calls that came as events, by function
        self._events_lost = 0  # and were shared out among the functions
        self._priced = (0, 0)
        self._cost_ns = 0.0
        self._seen: object = None

    def __enter__(self) -> Self:
        self.recording.start()
        self._learn()
        return self

    def __exit__(self, *_: object) -> None:
        self.recording.stop()
        if self._tap is not None:
            self._tap.close()

    @property
    def trace(self) -> Trace:
        """What it stands on."""
        return self.recording.trace

    def wait(self, seconds: float) -> None:
        """Drain for so long. Raises TargetExited."""
        pause_s = _LOOK_S if self.with_times else _DRAIN_S
        deadline = time.monotonic() + seconds
        while True:
            self._drain()
            self._target.agent.require_alive("the watch")
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(pause_s, left_s))

    def sample(self) -> Sample:
        """What has been counted so far."""
        self._drain()
        self._learn()
        columns = self.trace.profile_columns()
        calls, timed, total, own = (np.zeros(len(self.functions), np.int64) for _ in range(4))
        places, rows = self._placed(columns)
        if columns is not None:
            timed[places] = columns.hits[rows]
            total[places] = columns.total[rows]
            own[places] = columns.self[rows]
        self._count()
        calls += timed
        calls[: len(self._counted)] += self._counted
        chosen = np.flatnonzero(calls)
        buckets = np.zeros((len(chosen), BUCKETS), np.uint32)
        if columns is not None:
            buckets[np.searchsorted(chosen, places)] = columns.buckets[rows]
        return Sample(
            time.monotonic(),
            chosen,
            calls[chosen],
            timed[chosen],
            total[chosen],
            own[chosen],
            buckets,
            cost_ns=self._price(int(timed.sum()), int(self._counted.sum())),
            cpu_ns=cpu_ns(self.pid),
            lost=self.trace.lost + (columns.lost if columns else 0),
            missed=self.trace.overruns,
        )

    def switch(self, function: int, *, on: bool) -> None:
        """Trace a function, or do not; what is so already stays so. Raises as `Trace.choose`."""
        site = self._sites[function]
        # What was refused before would be tried, and refused, again.
        possible = self.trace.return_addresses.keys() - {site.address}
        others = [s for s in self.trace.chosen if s.address in possible]
        self.trace.choose([*others, site] if on else others)
        (self.off.discard if on else self.off.add)(function)
        self._learn()

    def switch_times(self) -> None:
        """Go over from times to calls alone, or back. Raises as `Trace.tracer`."""
        if self._tap is None:
            self._tap, self._counter = Tap(), CallCounter(self._place)
            self.trace.divert(self._tap.fd, lambda _fd: None)
        self.trace.tracer = FUNCTION if self.with_times else PROFILE
        self.with_times = not self.with_times

    def look_into(self, function: int) -> Neighbours:
        """Who calls a function and whom it calls. Raises as `Trace.start`, CaptureError."""
        with tempfile.TemporaryDirectory(prefix="textpoke-") as directory:
            path = os.path.join(directory, "stretch.tptrace")
            sites = {s.address: s for s in (*self.trace.chosen, self._sites[function])}
            wanted = list(sites.values())
            stretch = self._stretch(wanted, path)
            with stretch:
                deadline = time.monotonic() + _STRETCH_S
                while time.monotonic() < deadline and stretch.events < _MOST_EVENTS:
                    stretch.drain()
                    self._drain()
                    time.sleep(_DRAIN_S)
                stretch.record(on=False)  # nobody drains while it is switched off
            address = next(a for a, place in self._place.items() if place == function)
            return neighbours(path, address)

    def _stretch(self, wanted: list[Site], path: str) -> Trace:
        return Trace(
            self._target, wanted, path, tracer=GRAPH, name="top-stretch", ring_bytes=_STRETCH_BYTES
        )

    def _drain(self) -> None:
        self.recording.drain()
        if self._tap is not None and self._counter is not None:
            self._counter.add(self._tap.borrow())

    def _learn(self) -> None:
        """Functions of modules that have come; numbers for the header."""
        trace = self.trace
        if trace.last is self._seen:
            return
        self._seen = trace.last
        known = len(self.functions)
        for site, address in trace.sites_by_return():
            if address not in self._place:
                self._place[address] = len(self.functions)
                self.functions.append(Function(escape(site.module), escape(site.function)))
                self._sites.append(site)
        if self._counter is not None and len(self.functions) > known:
            self._count()
            self._counter = CallCounter(self._place)
        self.patched = trace.function_count
        self.refused = len({site.address for site, _ in trace.refused})

    def _placed(self, columns: Columns | None) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
        """Places of the rows of known functions, and these rows."""
        addresses = columns.address.tolist() if columns is not None else []
        places = np.array([self._place.get(a, -1) for a in addresses], np.int64)
        rows = np.flatnonzero(places >= 0)
        return places[rows], rows

    def _count(self) -> None:
        """Add what came as events."""
        if self._counter is None:
            return
        lost, self._events_lost = self.trace.lost - self._events_lost, self.trace.lost
        more = len(self.functions) - len(self._counted)
        self._counted = np.pad(self._counted, (0, more))
        for address, calls in self._counter.take(lost).items():
            self._counted[self._place[address]] += calls

    def _price(self, timed: int, counted: int) -> float:
        """What all calls so far have cost, in nanoseconds."""
        before_timed, before_counted = self._priced
        self._priced = timed, counted
        self._cost_ns += max(timed - before_timed, 0) * event_ns(PROFILE)
        self._cost_ns += max(counted - before_counted, 0) * event_ns(FUNCTION)
        return self._cost_ns


def _recording(target: Target, choice: Choice) -> Recording:
    """As `textpoke record` makes it, into no file. Raises as `Target.trace`, BadFilter."""
    session = RecordSession(target)
    filters = FilterSet.of(choice.include, choice.exclude)
    plain = all(rule.is_plain for rule in (*filters.trace, *filters.notrace))
    trace = target.trace(
        choice.include if plain else (),
        choice.exclude if plain else (),
        everything=choice.everything,
        traps=choice.traps,
        mode=choice.mode,
        tracer=PROFILE,
    )
    recording = Recording(trace, session.names, filters)
    if not plain:
        recording.set_filters(filters)
    return recording
