# SPDX-License-Identifier: Apache-2.0
"""One call under each tracer, and under what else there is, side by side in the same run."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common import Goal, figure, median
from subject import CHUNK, Subject
from targets.many import Many

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OFF = "off"
TRACERS = {"function": 16, "function_graph": 32, "profile": 0}
"""Bytes that a call writes."""
GOALS_NS = {"function": 15.0, "function_graph": 40.0, "profile": 25.0}
HOT = (1, 1)  # functions and threads that the goals are about
HEAD = ("what", "N", "T", "best ns", "median ns", "bytes", "ns/byte")
_RING_BYTES = 1 << 20
_QUIET_S = 0.05
_WARM_CALLS = 16 * CHUNK
_RECORD = ("uftrace", "record", "--no-libcall", "--no-event")
_UFTRACE = {
    "uftrace, -pg": ("pg", ()),
    "uftrace, -mfentry": ("fentry", ()),
    "uftrace, patched NOPs": ("nop-run", ("-P", "^f[0-9]")),
    "uftrace --nop, -pg": ("pg", ("--nop",)),
}
_INSTRUMENTED = {
    "-finstrument-functions, recorder": ("instrument-record", 32),
    "-finstrument-functions, empty": ("instrument-empty", 0),
}


@dataclass(slots=True)
class Peer:
    """One way to see a call.

    Attributes:
        name: What tables call it.
        sites: Functions that are called in turn.
        threads: Threads that do so.
        run: Makes so many calls in every thread; CPU nanoseconds a call.
        call_bytes: What a call writes; None until it is known.
        folder: Where it writes, to find that out.
        calls: All that were made.
        ns: Of each round.
        over_ns: The same without what the bare program took in that round.
        best_ns: The best round, over the best of the bare program.
    """

    name: str
    sites: int
    threads: int
    run: Callable[[int], float]
    call_bytes: float | None
    folder: Path | None = None
    calls: int = 0
    ns: list[float] = field(default_factory=list)
    over_ns: list[float] = field(default_factory=list)
    best_ns: float = 0.0

    def weigh(self) -> None:
        """How much a call has written, once the program has ended."""
        if self.folder is not None:
            size = sum(path.stat().st_size for path in self.folder.glob("*.dat"))
            self.call_bytes = size / self.calls

    def _by_byte(self) -> float | None:
        return median(self.over_ns) / self.call_bytes if self.call_bytes else None

    def cells(self) -> list[str]:
        """The row of the table."""
        numbers = (self.best_ns, median(self.over_ns), self.call_bytes, self._by_byte())
        return [self.name, f"{self.sites:,}", str(self.threads), *map(figure, numbers)]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "what": self.name,
            "sites": self.sites,
            "threads": self.threads,
            "call_ns_best": self.best_ns,
            "call_ns": median(self.over_ns),
            "call_ns_all": self.over_ns,
            "bytes": self.call_bytes,
            "ns_by_byte": self._by_byte(),
        }


def cpu_ns(many: Many, calls: int) -> float:
    """Let every thread make `calls` calls. Returns CPU nanoseconds by call."""
    time.sleep(_QUIET_S)  # uftrace may still be writing what it has got
    many.give(_WARM_CALLS)  # idle threads look for calls, and that takes CPU time
    many.wait_idle()
    before = many.tallies()
    many.give(calls)
    many.wait_idle()
    spent = sum(b.clock_ns - a.clock_ns for a, b in zip(before, many.tallies(), strict=True))
    return spent / (calls * many.threads)


def measure(sites: int, threads: int, *, quick: bool) -> list[Peer]:
    """All ways in turn, again and again, so that each sees the same machine."""
    with tempfile.TemporaryDirectory(prefix="peers-") as folder, contextlib.ExitStack() as keep:
        peers = [*_ours(keep, sites, threads), *_others(keep, sites, threads, Path(folder))]
        calls = (16 if quick else 64) * CHUNK
        for number in range(4 if quick else 25):
            bare_ns = 0.0
            for peer in peers:
                ns = peer.run(calls)
                peer.calls += (calls + _WARM_CALLS) * threads
                bare_ns = bare_ns or ns  # the first one is our program with nothing patched
                if number:  # else it only warms up
                    peer.ns.append(ns)
                    peer.over_ns.append(ns - bare_ns)
        keep.close()  # the programs end, and what they have written is whole
        for peer in peers:
            peer.best_ns = min(peer.ns) - min(peers[0].ns)
            peer.weigh()
    return [peer for peer in peers if peer.name != OFF]


def _ours(stack: contextlib.ExitStack, sites: int, threads: int) -> Iterator[Peer]:
    subject = Subject("nop-run", sites, threads, quota=0, ring_bytes=_RING_BYTES)
    stack.enter_context(subject)
    trace = subject.target.trace(subject.many.pattern, overwrite=True, tracer="nop")
    stack.enter_context(trace)

    def run_with(tracer: str) -> Callable[[int], float]:
        def run(calls: int) -> float:
            trace.tracer = tracer
            ns = cpu_ns(subject.many, calls)
            trace.tracer = "nop"
            return ns

        return run

    yield Peer(OFF, sites, threads, run_with("nop"), 0)
    for tracer, call_bytes in TRACERS.items():
        yield Peer(tracer, sites, threads, run_with(tracer), call_bytes)


def _others(stack: contextlib.ExitStack, sites: int, threads: int, folder: Path) -> Iterator[Peer]:
    for name, (kind, call_bytes) in _INSTRUMENTED.items():
        many = stack.enter_context(Many(kind, sites, threads, quota=0))
        yield Peer(name, sites, threads, _calls_of(many), call_bytes)
    if shutil.which("uftrace") is None:
        print("uftrace is not installed: left out", file=sys.stderr)
        return
    for number, (name, (kind, options)) in enumerate(_UFTRACE.items()):
        data = folder / str(number)
        under = [*_RECORD, *options, "-d", str(data)]
        many = stack.enter_context(Many(kind, sites, threads, quota=0, under=under))
        yield Peer(name, sites, threads, _calls_of(many), None, data)


def _calls_of(many: Many) -> Callable[[int], float]:
    return lambda calls: cpu_ns(many, calls)


def goals(peers: list[Peer]) -> list[Goal]:
    """What issue 5 asks for."""
    hot = {p.name: p for p in peers if (p.sites, p.threads) == HOT and p.name in GOALS_NS}
    return [
        Goal(f"{name}, one hot function: a call", median(hot[name].over_ns), GOALS_NS[name], "ns")
        for name in hot
    ]
