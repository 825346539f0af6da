# SPDX-License-Identifier: Apache-2.0
"""What tracing costs the target: events times what one costs here, as a share of its CPU time.

What an event costs is measured when a recording begins: the function probe's own code runs a few
thousand times in this process, on a ring of its own. That is the probe with everything in the
cache; what it displaces there is not in it. Other probes cost a known multiple (bench/event.py).
"""

from __future__ import annotations

import functools
import mmap
import time
from dataclasses import dataclass, field

from textpoke import clock
from textpoke._native import ffi, lib
from textpoke.agent_image import Probe, load_image
from textpoke.tracer_names import FUNCTION, GRAPH, NOP, PROFILE

_FUNCTION_NS = 14.0
_PER_EVENT = {FUNCTION: 1.0, GRAPH: 1.45, PROFILE: 2.9, NOP: 0.0}
"""Of function's cost; of profile: each call."""
_PER_EVENT_OF_OTHERS = 4.0
_WORDS_BYTES = ffi.sizeof("struct tp_probe_words")


@functools.cache
def function_event_ns() -> tuple[float, bool]:
    """What an event of the function tracer costs on this machine, and whether that was measured."""
    try:
        code = load_image().probe(0, Probe(lib.TP_PROBE_FUNCTION), 0)
        size = -(-len(code) // mmap.PAGESIZE) * mmap.PAGESIZE
        allowed = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
        memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, allowed)
    except OSError:  # nobody may execute what he has written here
        return _FUNCTION_NS, False
    memory[: len(code)] = code
    start = ffi.from_buffer("uint8_t[]", memory, require_writable=True)
    tail = memoryview(memory)[len(code) - _WORDS_BYTES : len(code)]
    words = ffi.from_buffer("struct tp_probe_words *", tail, require_writable=True)
    ticks = ffi.new("uint64_t *")
    if lib.tp_probe_cost(start, words, ticks):
        return _FUNCTION_NS, False
    return int(ticks[0]) / 1e3 * clock.ns_per_tick(), True


def event_ns(tracer: str) -> float:
    """What one event of a tracer costs the thread that writes it; of profile: one call."""
    return function_event_ns()[0] * _PER_EVENT.get(tracer, _PER_EVENT_OF_OTHERS)


@dataclass(frozen=True, slots=True)
class Overhead:
    """What a recording has cost its target.

    Attributes:
        events: Events that its threads have written; of profile: calls.
        cost_ns: What they cost.
        cpu_ns: CPU time that the target has used meanwhile, these costs included.
        measured: The cost of an event was measured on this machine.
        known: Every call has left an event. False with a threshold: then this is a lower bound.
        calls: How many of `events` are calls that profile has counted.
    """

    events: int
    cost_ns: float
    cpu_ns: int
    measured: bool = True
    known: bool = True
    calls: int = 0

    @property
    def share(self) -> float:
        """Part of the target's CPU time, from 0 to 1."""
        return min(self.cost_ns / self.cpu_ns, 1.0) if self.cpu_ns > 0 else 0.0

    def as_dict(self) -> dict[str, object]:
        """Plain data."""
        return {
            "share": round(self.share, 4),
            "events": self.events,
            "ns_per_event": round(self.cost_ns / self.events, 2) if self.events else 0.0,
            "cpu_ns": self.cpu_ns,
            "measured": self.measured,
            "known": self.known,
        }

    @property
    def _unit(self) -> str:
        if not self.calls:
            return "events"
        return "calls" if self.calls == self.events else "events and calls"

    def __str__(self) -> str:
        if not self.events or self.cpu_ns <= 0:
            return "overhead: nothing that could be measured"
        about = "about" if self.known else "more than"
        ns = self.cost_ns / self.events
        percent = self.share * 100
        digits = f"{percent:.0f}" if percent >= 10 else f"{percent:.2g}"
        text = f"overhead: {about} {digits} % of the target's CPU time"
        text += (
            f" ({_rounded(self.events)} {self._unit} at {ns:.0f} ns in {self.cpu_ns / 1e9:.1f} s)"
        )
        return text if self.known else f"{text}; calls below the threshold are not counted"


@dataclass(slots=True)
class Meter:
    """Adds up what a recording costs, tracer by tracer.

    Args:
        pid: The target.
        known: Every call leaves an event.
    """

    pid: int
    known: bool = True
    _events: int = 0
    _cost_ns: float = 0.0
    _cpu_before_ns: int = field(init=False, default=0)
    _cpu_ns: int = field(init=False, default=0)
    _seen: dict[str, int] = field(init=False, default_factory=dict)

    def begin(self) -> None:
        """Now everything is switched on."""
        self._cpu_before_ns = self._cpu_ns = cpu_ns(self.pid)

    def look(self, tracer: str, events: int, calls: int = 0) -> None:
        """So many events were written so far, by this tracer since the last look.

        Args:
            tracer: Its name.
            events: All events of the recording.
            calls: All calls that were counted instead (profile).
        """
        self._cpu_ns = max(self._cpu_ns, cpu_ns(self.pid))
        for kind, total, price in (("", events, tracer), (PROFILE, calls, PROFILE)):
            more = max(total - self._seen.get(kind, 0), 0)
            self._seen[kind] = max(total, self._seen.get(kind, 0))
            if more:
                self._events += more
                self._cost_ns += more * event_ns(price)

    def result(self) -> Overhead:
        """Up to the last look."""
        used = self._cpu_ns - self._cpu_before_ns
        measured, calls = function_event_ns()[1], self._seen.get(PROFILE, 0)
        return Overhead(self._events, self._cost_ns, used, measured, self.known, calls)


def cpu_ns(pid: int) -> int:
    """CPU time that the process has used; 0 when it is gone."""
    try:
        # As clock_getcpuclockid makes it: the scheduler's account of the whole process.
        return time.clock_gettime_ns(~pid << 3 | 2)
    except OSError:
        return 0


def _rounded(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 1_000_000 else f"{number:,}"
