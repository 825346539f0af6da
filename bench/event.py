# SPDX-License-Identifier: Apache-2.0
"""The cost of one event, and of one call under each tracer and under other tools."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING

import common
import peers
from common import Goal, figure, median
from subject import CHUNK, Subject, complaints

if TYPE_CHECKING:
    import argparse

    from textpoke.one_trace import Trace

ABOUT = """
Threads call tiny functions, T threads N functions round robin, N = 1 (warm: caches and branch
predictor know it all) and N = 1,000. Each thread makes a fixed number of calls with the trace
off, then the same with it on, again and again; the threads idle while it is switched. Cost is the
threads' own CPU time by call, so it does not matter who else wants the CPU; off and on alternate,
so both see the same machine. Every figure is a median over the pairs.

  overwrite  rings keep the last events (flight recorder): the full price of an event, no reader.
             Older events are overwritten by design: events + overwritten must be all calls.
  ring fits  as many calls as a ring has room for, drained afterwards: nothing may be lost; such
             a run takes a millisecond, in which 1,000 functions are still new to the predictors
  drained    large rings, drained and thrown away while the threads run; losses are counted
  event ns   on minus off: what one event costs;  ratio: on by off
  exact      events + lost = calls, in every single run

Then a call (entry and exit) under each tracer, under uftrace, and with what gcc's
-finstrument-functions calls: the programs take turns, a quarter of a million calls each, so all see
the same machine; our rings overwrite. Cost is again the threads' CPU time by call over the program
with nothing patched (whose functions have NOPs, those of the others a call: that is theirs).
  best, median  of all rounds: over the best of the bare program, and over that round's
  bytes         that a call has written; uftrace writes files, from another process, whose time is
                not counted here. --nop: its hooks run and record nothing
"""
GOAL_NS = 15.0
_SMALL_RING = 1 << 20
_LARGE_RING = 1 << 24
_SLACK = 64  # textpoke.tracer keeps this many events of a ring in reserve
_EVENT_BYTES = 16
_DRAIN_S = 0.0005


@dataclass(frozen=True, slots=True)
class Mode:
    """How the events are kept, and how many calls each thread makes in one run."""

    name: str
    calls: int
    overwrite: bool = False
    drain: bool = False
    ring_bytes: int = _SMALL_RING


@dataclass(slots=True)
class Row:
    """One line of the table; a pair of runs, off and on, adds one entry to each list."""

    kind: str
    sites: int
    threads: int
    mode: Mode
    off_ns: list[float] = field(default_factory=list)
    on_ns: list[float] = field(default_factory=list)
    events: int = 0
    lost: int = 0
    calls: int = 0
    exact: bool = True

    def event_ns(self) -> float:
        return median(on - off for on, off in zip(self.on_ns, self.off_ns, strict=True))

    def ratio(self) -> float:
        return median(on / off for on, off in zip(self.on_ns, self.off_ns, strict=True))

    def lost_percent(self) -> float:
        return 100 * self.lost / self.calls if self.calls else 0.0

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "sites": self.sites,
            "threads": self.threads,
            "mode": self.mode.name,
            "pairs": len(self.on_ns),
            "off_ns": median(self.off_ns),
            "on_ns": median(self.on_ns),
            "event_ns": self.event_ns(),
            "event_ns_all": [on - off for on, off in zip(self.on_ns, self.off_ns, strict=True)],
            "ratio": self.ratio(),
            "calls": self.calls,
            "events": self.events,
            "lost": self.lost,
            "lost_percent": self.lost_percent(),
            "exact": self.exact,
        }

    def cells(self) -> list[str]:
        numbers = (median(self.off_ns), median(self.on_ns), self.event_ns(), self.ratio())
        lost = "overwritten" if self.mode.overwrite else figure(self.lost_percent())
        return [
            *(self.kind, f"{self.sites:,}", str(self.threads), self.mode.name),
            *(*map(figure, numbers), lost, "yes" if self.exact else "NO"),
        ]


HEAD = ("kind", "N", "T", "mode", "off ns", "on ns", "event ns", "ratio", "lost %", "exact")


def run_calls(subject: Subject, calls: int, trace: Trace | None = None) -> float:
    """Let every thread make `calls` calls. Returns CPU nanoseconds per call."""
    before = subject.many.tallies()
    subject.many.give(calls)
    while trace is not None and not subject.many.all_idle():
        trace.drain()
        time.sleep(_DRAIN_S)
    subject.many.wait_idle()
    after = subject.many.tallies()
    spent = sum(b.clock_ns - a.clock_ns for a, b in zip(before, after, strict=True))
    return spent / (calls * subject.many.threads)


def run_pair(subject: Subject, row: Row) -> None:
    """One run with the trace off, one with it on."""
    mode = row.mode
    off_ns = run_calls(subject, mode.calls)
    with subject.target.trace(subject.many.pattern, overwrite=mode.overwrite) as trace:
        on_ns = run_calls(subject, mode.calls, trace if mode.drain else None)
    made = mode.calls * row.threads
    row.off_ns.append(off_ns)
    row.on_ns.append(on_ns)
    row.events += trace.events
    row.lost += trace.lost
    row.calls += made
    row.exact = row.exact and trace.events + trace.lost == made


def measure(subject: Subject, mode: Mode, pairs: int) -> Row:
    """All pairs of one mode, after one that only warms up."""
    many = subject.many
    run_pair(subject, Row(many.kind, many.sites, many.threads, mode))
    row = Row(many.kind, many.sites, many.threads, mode)
    for _ in range(pairs):
        run_pair(subject, row)
    return row


def modes(*, quick: bool) -> list[Mode]:
    """Many calls where the ring does not matter; else as many as fit."""
    long = (16 if quick else 128) * 16 * CHUNK
    fits = (_SMALL_RING // _EVENT_BYTES - _SLACK) // CHUNK * CHUNK
    return [
        Mode("overwrite", long, overwrite=True),
        Mode("ring fits", fits),
        Mode("drained", long, drain=True, ring_bytes=_LARGE_RING),
    ]


def goals(rows: list[Row]) -> list[Goal]:
    """What issue 2 asks for."""
    found = []
    for row in rows:
        where = f"{row.kind}, N {row.sites:,}, T {row.threads}, {row.mode.name}"
        if row.mode.overwrite:
            found.append(Goal(f"{where}: one event", row.event_ns(), GOAL_NS, "ns"))
        elif not row.mode.drain:
            found.append(Goal(f"{where}: lost", row.lost, 0, "events"))
    inexact = sum(not row.exact for row in rows)
    return [*found, Goal("rows whose events and losses are not all calls", inexact, 0, "rows")]


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "event")
    common.add_matrix(made, [1, 1000], [1, 2])
    made.add_argument("--pairs", type=int, metavar="COUNT", help="off and on (9, quick: 3)")
    made.add_argument("--only", choices=["modes", "peers"], help="one of the two tables")
    return made.parse_args()


def measure_modes(args: argparse.Namespace, clocks: list[float]) -> tuple[list[Row], list[Subject]]:
    """One function event in each way to keep it."""
    rows: list[Row] = []
    subjects: list[Subject] = []
    for kind, sites, threads in product(args.kinds, args.sites, args.threads):
        print(f"{kind}, {sites:,} sites, {threads} threads", file=sys.stderr)
        for mode in modes(quick=args.quick):
            subject = Subject(kind, sites, threads, quota=0, ring_bytes=mode.ring_bytes)
            subjects.append(subject)
            clocks.append(common.rdtsc_ns())
            with subject:
                rows.append(measure(subject, mode, args.pairs or (3 if args.quick else 9)))
    return rows, subjects


def measure_peers(args: argparse.Namespace, clocks: list[float]) -> list[peers.Peer]:
    """A call under each tracer and other tools: a hot function, many in turn, two threads."""
    found: list[peers.Peer] = []
    for sites, threads in ((1, 1), (1000, 1), (1, 2)):
        print(f"tracers and peers, {sites:,} sites, {threads} threads", file=sys.stderr)
        clocks.append(common.rdtsc_ns())
        found += peers.measure(sites, threads, quick=args.quick)
    return found


def main() -> int:
    """Measure all rows; returns 1 when something is wrong, not when it is slow."""
    args = arguments()
    facts, clocks = common.machine(), [common.rdtsc_ns()]
    common.say_machine(facts)
    rows, subjects = measure_modes(args, clocks) if args.only != "peers" else ([], [])
    calls = measure_peers(args, clocks) if args.only != "modes" else []
    aims, problems = goals(rows) + peers.goals(calls), complaints(subjects)
    rdtsc_ns = median(clocks)
    print(
        f"\nrdtsc alone, once in every event: {rdtsc_ns:.1f} ns (median of {len(clocks)} looks,"
        f" {min(clocks):.1f} to {max(clocks):.1f}, between the rows)\n"
    )
    if rows:
        print(common.table(HEAD, [row.cells() for row in rows]) + "\n")
    if calls:
        print(common.table(peers.HEAD, [peer.cells() for peer in calls]))
    common.say_goals(aims)
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    result = {"machine": facts, "quick": args.quick, "rdtsc_ns": rdtsc_ns, "problems": problems}
    result["rows"] = [row.as_dict() for row in rows]
    result["calls"] = [peer.as_dict() for peer in calls]
    result["goals"] = [goal.as_dict() for goal in aims]
    common.write_json(args.json, result)
    return 1 if problems or not all(row.exact for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
