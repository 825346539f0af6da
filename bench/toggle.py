# SPDX-License-Identifier: Apache-2.0
"""The cost of switching sites on and off: one batch, one by one, all threads stopped."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import common
from common import Goal, figure, median
from methods import Batch, Method, OneByOne, StopWorld, Throughput, throughput
from subject import Sample, Subject, complaints
from watch import MapsWatch

if TYPE_CHECKING:
    import argparse

ABOUT = """
Switch N sites on and off in a program of N tiny functions that T hot threads call round robin.

  batch        all sites in one run of the protocol
  one by one   the same engine, a run of the protocol for each site
  ptrace stop  every thread stopped, written a page at a time, let go (bench/stop_world.c)

Every figure is the median over switches on and off; the sites call a thunk that returns at once.
  batch us     time in the target for all sites, from the engine's own clock
  wall us      the same as the tool sees it
  ns/site      batch us by N
  cold ns/site the first switch-on of a fresh process: pages that nobody has written before;
               the second figure is what the tool sees, with the table of sites being made
  traps        threads that ran into an int3, mean per batch; syncs, writes: per batch
  calls        calls per second of the hot threads while all sites go on and off at 10 Hz (or as
               often as the method can: Hz), against the same without toggling before and after
  per cpu      the same ratio by the threads' own CPU time: steadier where others want the CPU
During the whole run proc/PID/maps is read: no mapping may ever be writable and executable.
Programs are compiled once into build/bench/targets (20,000 functions: half a minute).
"""
BATCH = Batch()
METHODS: tuple[Method, ...] = (BATCH, StopWorld(), OneByOne())
BIG, HOT = 20_000, 2  # what the goals are about


@dataclass(slots=True)
class Effort:
    """How much time is spent on one cell."""

    budget_s: float = 0.6
    most_pairs: int = 40
    cold_starts: int = 5
    window_s: float = 0.7
    windows: int = 3
    watch_s: float = 0.3


QUICK = Effort(0.05, 5, 1, 0.3, 1, 0.1)


@dataclass(slots=True)
class Row:
    """One line of the table."""

    kind: str
    sites: int
    threads: int
    method: str
    samples: list[Sample]
    cold: list[Sample] = field(default_factory=list)
    calls: Throughput | None = None

    def batch_us(self) -> float:
        return median(s.total_ns for s in self.samples) / 1e3

    def ns_per_site(self) -> float:
        return self.batch_us() * 1e3 / self.sites

    def cold_ns(self, clock: str) -> float | None:
        times = [getattr(sample, clock) for sample in self.cold]
        return median(times) / self.sites if times else None

    def counter(self, name: str) -> float | None:
        """The mean of one of the engine's counters; None where another than ours did it."""
        outcomes = [s.outcome for s in self.samples if s.outcome is not None]
        return sum(getattr(o, name) for o in outcomes) / len(outcomes) if outcomes else None

    def sites_per_page(self) -> float | None:
        pages = self.counter("pages")
        return self.sites / pages if pages else None

    def phases(self) -> dict[str, float]:
        """Nanoseconds per site by phase of the protocol; "rest" is what no phase has claimed."""
        outcomes = [s.outcome for s in self.samples if s.outcome is not None]
        if not outcomes:
            return {}
        names = [name for name, ns in outcomes[0].phase_ns.items() if ns]
        found = {n: median(o.phase_ns[n] for o in outcomes) / self.sites for n in names}
        return {**found, "rest": self.ns_per_site() - sum(found.values())}

    def figures(self) -> dict[str, float | None]:
        """Every number, by name."""
        calls = self.calls
        return {
            "batch_us": self.batch_us(),
            "wall_us": median(s.wall_ns for s in self.samples) / 1e3,
            "ns_per_site": self.ns_per_site(),
            "cold_ns_per_site": self.cold_ns("total_ns"),
            "cold_wall_ns_per_site": self.cold_ns("wall_ns"),
            "traps": self.counter("traps"),
            "syncs": self.counter("syncs"),
            "writes": median(s.writes for s in self.samples),
            "sites_per_page": self.sites_per_page(),
            "calls_ratio": calls.calls_ratio if calls else None,
            "calls_per_cpu_s_ratio": calls.cpu_ratio if calls else None,
            "toggle_hz": calls.hz if calls else None,
            "calls_per_s": calls.calls_per_s if calls else None,
            "on_us": median(s.total_ns for s in self.samples[::2]) / 1e3,
            "off_us": median(s.total_ns for s in self.samples[1::2]) / 1e3,
            "worst_us": max(s.total_ns for s in self.samples) / 1e3,
            "late_traps": self.counter("late_traps"),
            "undrained": self.counter("undrained"),
            "inside": sum(s.inside for s in self.samples),
        }

    def as_dict(self) -> dict[str, object]:
        return {
            "kind": self.kind,
            "sites": self.sites,
            "threads": self.threads,
            "method": self.method,
            "switches": len(self.samples),
            **self.figures(),
            "cold_ns_per_site_all": [s.total_ns / self.sites for s in self.cold],
            "phase_ns_per_site": self.phases(),
        }

    def cells(self) -> list[str]:
        shown = list(self.figures().values())[: len(HEAD) - 4]
        return [self.kind, f"{self.sites:,}", str(self.threads), self.method, *map(figure, shown)]


HEAD = (
    *("kind", "N", "T", "method", "batch us", "wall us", "ns/site", "cold", "cold wall"),
    *("traps", "syncs", "writes", "sites/page", "calls", "per cpu", "Hz"),
)


@dataclass(slots=True)
class Results:
    """Everything measured so far."""

    rows: list[Row] = field(default_factory=list)
    subjects: list[Subject] = field(default_factory=list)
    map_samples: int = 0
    bad_maps: set[str] = field(default_factory=set)

    def start(self, kind: str, sites: int, threads: int) -> Subject:
        """A fresh program; its end will be looked at."""
        self.subjects.append(Subject(kind, sites, threads))
        return self.subjects[-1]

    def row(self, kind: str, sites: int, threads: int, method: str) -> Row | None:
        key = (kind, sites, threads, method)
        return next((r for r in self.rows if (r.kind, r.sites, r.threads, r.method) == key), None)


def measure_cell(results: Results, kind: str, sites: int, threads: int, effort: Effort) -> None:
    """All methods on one program."""
    cold = [_cold(results, kind, sites, threads) for _ in range(effort.cold_starts - 1)]
    with results.start(kind, sites, threads) as subject:
        watch = MapsWatch(subject.many.pid, subject.text)
        with watch:
            cold.append(subject.switch(on=True))
            subject.switch(on=False)
            for method in METHODS:
                samples = method.pairs(subject, effort.budget_s, effort.most_pairs)
                row = Row(kind, sites, threads, method.name, samples)
                slow = row.batch_us() > effort.window_s * 1e6
                if threads:
                    windows = 1 if slow else effort.windows
                    row.calls = throughput(method, subject, effort.window_s, windows)
                results.rows.append(row)
            watch.look_often(often=True)
            BATCH.toggle(subject, effort.watch_s, 1e9)
    results.rows[-len(METHODS)].cold = cold
    results.map_samples += watch.samples
    results.bad_maps |= watch.bad


def _cold(results: Results, kind: str, sites: int, threads: int) -> Sample:
    with results.start(kind, sites, threads) as subject:
        sample = subject.switch(on=True)
        subject.switch(on=False)
    return sample


def goals(results: Results, kinds: list[str]) -> list[Goal]:
    """What issue 2 asks for."""
    found = []
    for kind in kinds:
        batch = results.row(kind, BIG, HOT, "batch")
        single = results.row(kind, BIG, HOT, "one by one")
        each = batch.ns_per_site() if batch else None
        ratio = single.ns_per_site() / each if single and each else None
        where = f"{kind}, {BIG:,} sites, {HOT} hot threads"
        syncs = 2 if kind == "nop-run" else 3
        found += [
            Goal(f"{where}: faster per site than one by one", ratio, 1000, "times", at_least=True),
            Goal(f"{where}: batch", each, 60, "ns/site"),
            Goal(f"{where}: batch", batch.counter("syncs") if batch else None, syncs, "syncs"),
            Goal(f"{where}: batch", _writes_per_page(batch), syncs, "writes/page"),
        ]
        for threads in range(HOT + 1):
            cold = results.row(kind, BIG, threads, "batch")
            name = f"{kind}, {BIG:,} cold sites, {threads} hot threads: first switch-on"
            found.append(Goal(name, cold.cold_ns("total_ns") if cold else None, 100, "ns/site"))
    bad, samples = len(results.bad_maps), results.map_samples
    problems = len(complaints(results.subjects))
    found.append(Goal(f"writable code in {samples:,} looks at the maps", bad, 0, "mappings"))
    found.append(Goal("wrong results, residue after detach", problems, 0, "lines"))
    return found


def _writes_per_page(row: Row | None) -> float | None:
    writes, pages = (row.counter("writes"), row.counter("pages")) if row else (None, None)
    return writes / pages if writes is not None and pages else None


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "toggle")
    common.add_matrix(made, [1, 10, 100, 1000, BIG], [0, 1, HOT])
    return made.parse_args()


def main() -> int:
    """Measure all cells; returns 1 when something is wrong, not when it is slow."""
    args = arguments()
    effort = QUICK if args.quick else Effort()
    facts, results = common.machine(), Results()
    common.say_machine(facts)
    for kind in args.kinds:
        for sites in args.sites:
            for threads in args.threads:
                print(f"{kind}, {sites:,} sites, {threads} hot threads", file=sys.stderr)
                measure_cell(results, kind, sites, threads, effort)
    aims = goals(results, args.kinds)
    print("\n" + common.table(HEAD, [row.cells() for row in results.rows]))
    common.say_goals(aims)
    problems = [*sorted(results.bad_maps), *complaints(results.subjects)]
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    common.write_json(
        args.json,
        {
            "machine": facts,
            "quick": args.quick,
            "rows": [row.as_dict() for row in results.rows],
            "goals": [goal.as_dict() for goal in aims],
            "map_samples": results.map_samples,
            "problems": problems,
        },
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
