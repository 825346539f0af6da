# SPDX-License-Identifier: Apache-2.0
"""The seed's own benchmark on Redis under load: seven tracers on and off, 500 cycles."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import common
from common import Goal, figure, median

sys.path.append(str(common.HERE.parent / "tests" / "real"))
from processes import built
from redis_server import Load, Redis

import textpoke
from textpoke import one_trace, tracers
from textpoke.tracer_names import BRANCH, NOP

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from textpoke.one_trace import Trace
    from textpoke.poke import Outcome
    from textpoke.tracer import Target

ABOUT = """
What the seed did with its patches to ftrace: 7 tracers (blk, branch, function_graph, wakeup_rt,
irqsoff, function, nop), each switched on and off again, 500 cycles; here on a Redis with NOPs at
every function (3,900 and more sites), which redis-benchmark keeps busy on the same processors.

  batched          as textpoke does it: one change is one batch, every site in the mode that suits
  batched, paced   the same, spread evenly over the minute that there is: what Redis loses to it
  batched, int3    the same by the protocol of the kernel's text_poke_bp alone
  one by one       that, a run of the protocol a site: what the seed compares with
  threads stopped  every thread is held while the batch is written

wakeup_rt and irqsoff trace all functions of Redis besides those of libc, as in the kernel. Only
"batched" and "paced" go through all cycles; the others through a few, scaled: real seconds by
cycles times 500. A first cycle, in which sites are found, planned and copies of probes mapped, and
two more come before the clock starts; the first is told apart. User and sys are of the tool (but
not of the guards that hold threads) and of Redis with our agent in it, while the clock runs.
  engine ms        of that, by cycle, in the protocol itself, by the engine's own clock
  held ms          by cycle, how long all threads of Redis were held
  req/s, of alone  requests by second, by Redis's own count, and their share of the throughput
                   without any tracer (mean of a window before and one after). The paced run stops
                   for such a window after every tenth of its cycles: there the share is the median
                   over the tenths. Where half of the windows differ by more than a tenth, others
                   want the CPU: no verdict
  failed           requests that Redis or redis-benchmark say have failed
"""
TRACERS = ("blk", BRANCH, "function_graph", "wakeup_rt", "irqsoff", "function", NOP)
CYCLES = 500
MOST_S, LEAST_SHARE, TIMES_FASTER = 60, 0.9, 500
_PACE_S = 58 / CYCLES
_RING_BYTES = 1 << 20
_REQUESTS = 300_000
_STEADY = 1.1
_PARTS = 10
_WARM_CYCLES = 2  # then every batch has been packed and is known
_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Method:
    """How switches are made."""

    name: str
    mode: str
    cycles: int
    one_by_one: bool = False
    cycle_s: float = 0.0  # from the start of one cycle to that of the next, at least
    parts: int = 1  # with a look at the throughput without tracers between them


@dataclass(frozen=True, slots=True)
class Clocks:
    """Seconds and requests so far, or between two looks."""

    real: float
    user: float
    sys: float
    target_user: float
    target_sys: float
    requests: int

    @classmethod
    def now(cls, redis: Redis) -> Self:
        """Look at all."""
        spent = os.times()
        with open(f"/proc/{redis.pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return cls(
            time.perf_counter(),
            spent.user,
            spent.system,
            int(fields[11]) * _SECONDS,
            int(fields[12]) * _SECONDS,
            int(redis.info("stats")["total_commands_processed"]),
        )

    def since(self, start: Clocks) -> Clocks:
        """The difference."""
        names = self.__slots__
        return Clocks(*(getattr(self, name) - getattr(start, name) for name in names))

    def plus(self, more: Clocks) -> Clocks:
        """The sum."""
        return Clocks(*(getattr(self, name) + getattr(more, name) for name in self.__slots__))

    def rate(self) -> float:
        """Requests by second."""
        return self.requests / self.real if self.real else 0.0


@dataclass(slots=True)
class Batches:
    """Of all batches of a run: the engine's own time, how long threads were held, traps."""

    engine_ns: int = 0
    hold_ns: int = 0
    traps: int = 0

    def add(self, outcome: Outcome) -> None:
        """Count one more batch."""
        self.engine_ns += outcome.total_ns
        self.hold_ns += outcome.hold_ns
        self.traps += outcome.traps


@dataclass(slots=True)
class Row:
    """One method, measured."""

    method: Method
    first_s: float
    parts: list[Clocks]
    alone: list[float]  # requests by second without tracers, before, between and after the parts
    switch_ms: dict[str, list[float]]  # by tracer, on and off
    sites: dict[str, int]
    batches: Batches
    failed: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def spent(self) -> Clocks:
        """On all parts."""
        return functools.reduce(Clocks.plus, self.parts)

    @property
    def scaled_s(self) -> float:
        """Real seconds of 500 cycles."""
        return self.spent.real / self.method.cycles * CYCLES

    @property
    def engine_ms(self) -> float:
        """What a cycle takes in the engine."""
        return self.batches.engine_ns / self.method.cycles / 1e6

    @property
    def is_steady(self) -> bool:
        """Is the throughput without tracers, in the middle half of its windows, about the same?"""
        windows, cut = sorted(self.alone), len(self.alone) // 4
        return windows[-1 - cut] <= _STEADY * windows[cut]

    @property
    def share(self) -> float:
        """Of Redis's throughput without tracers."""
        beside = zip(self.parts, itertools.pairwise(self.alone), strict=True)
        return median(2 * part.rate() / sum(around) for part, around in beside)

    def cells(self) -> list[str]:
        """The row of the table."""
        s = self.spent
        numbers = (s.real, s.user, s.sys, s.target_user, s.target_sys, self.scaled_s)
        return [
            *(self.method.name, str(self.method.cycles)),
            *map(figure, numbers),
            figure(self.engine_ms),
            figure(self.batches.hold_ns / self.method.cycles / 1e6),
            f"{s.rate():,.0f}",
            f"{100 * self.share:.0f} %",
            str(self.failed),
        ]

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        s = self.spent
        return {
            "method": self.method.name,
            "mode": self.method.mode,
            "cycles": self.method.cycles,
            "first_cycle_s": self.first_s,
            "real_s": s.real,
            "user_s": s.user,
            "sys_s": s.sys,
            "target_user_s": s.target_user,
            "target_sys_s": s.target_sys,
            "real_500_s": self.scaled_s,
            "requests_s": s.rate(),
            "requests_s_of_parts": [part.rate() for part in self.parts],
            "requests_s_alone": self.alone,
            "share": self.share,
            "engine_ms": self.engine_ms,
            "hold_ms": self.batches.hold_ns / self.method.cycles / 1e6,
            "traps": self.batches.traps,
            "failed": self.failed,
            "sites": self.sites,
            "switch_ms": {name: median(all_ms) for name, all_ms in self.switch_ms.items()},
            "problems": self.problems,
        }


HEAD = (
    *("method", "cycles", "real s", "user s", "sys s", "Redis user", "Redis sys", "500 cycles s"),
    *("engine ms", "held ms", "req/s", "of alone", "failed"),
)


class Bench:
    """A Redis under load, and what is done to it.

    Args:
        redis: The server.
        names: The tracers.
        window_s: How long the throughput without tracers is measured.
    """

    def __init__(self, redis: Redis, names: list[str], window_s: float) -> None:
        self.redis, self.names, self.window_s = redis, names, window_s

    def alone(self) -> float:
        """Requests by second with no tracer in place."""
        start = Clocks.now(self.redis)
        time.sleep(self.window_s)
        return Clocks.now(self.redis).since(start).rate()

    def measure(self, method: Method, load: Load) -> Row:
        """All cycles of one method; the first one apart."""
        failed = failures(self.redis, load)
        with textpoke.attach(self.redis.pid, ring_bytes=_RING_BYTES) as target:
            row = self._run(target, method)
        residue = target.report.residue if target.report else ["no report of the detach"]
        row.problems += [f"{method.name}: {line}" for line in residue]
        row.failed = failures(self.redis, load) - failed
        return row

    def _run(self, target: Target, method: Method) -> Row:
        took: dict[str, list[float]] = {name: [] for name in self.names}
        sites: dict[str, int] = {}
        with target.trace(overwrite=True, tracer=NOP, mode=method.mode) as trace:
            start = time.perf_counter()
            for name in self.names:
                trace.tracer = name
                sites[name] = target.records.count
                trace.tracer = NOP
            first_s = time.perf_counter() - start
            for _ in range(_WARM_CYCLES):
                self._cycle(trace, {name: [] for name in self.names})
            alone, parts = [self.alone()], []
            with _watched(target, one_by_one=method.one_by_one) as batches:
                for _ in range(method.parts):
                    parts.append(self._part(trace, method, took))
                    alone.append(self.alone())
        row = Row(method, first_s, parts, alone, took, sites, batches)
        row.problems = problems_of(trace, method)
        return row

    def _part(self, trace: Trace, method: Method, took: dict[str, list[float]]) -> Clocks:
        begin = Clocks.now(self.redis)
        for number in range(1, method.cycles // method.parts + 1):
            self._cycle(trace, took)
            wait_s = begin.real + number * method.cycle_s - time.perf_counter()
            time.sleep(max(wait_s, 0))
        return Clocks.now(self.redis).since(begin)

    def _cycle(self, trace: Trace, took: dict[str, list[float]]) -> None:
        for name in self.names:
            start = time.perf_counter()
            trace.tracer = name
            trace.tracer = NOP
            took[name].append((time.perf_counter() - start) * 1e3)


@contextlib.contextmanager
def _watched(target: Target, *, one_by_one: bool) -> Iterator[Batches]:
    """Note what the engine says of every batch."""
    records, seen = target.records, Batches()
    records.tell, records.one_by_one = seen.add, one_by_one
    try:
        yield seen
    finally:
        records.tell, records.one_by_one = None, False


def problems_of(trace: Trace, method: Method) -> list[str]:
    """Sites that a switch could not change, by reason."""
    reasons = [reason for _, reason in trace.refused]
    found = [f"{method.name}: {reasons.count(r)} sites: {r}" for r in dict.fromkeys(reasons)]
    return [*found, f"{method.name}: {trace.left_alone} left alone"] if trace.left_alone else found


def failures(redis: Redis, load: Load) -> int:
    """Requests that failed so far, and runs of redis-benchmark that did."""
    counts = [redis.command(name) for name in ("set", "get")]
    rejected = sum(c.get("failed_calls", 0) + c.get("rejected_calls", 0) for c in counts)
    runs = sum(code != 0 or "rror" in output for code, output in load.runs)
    return rejected + runs + int(redis.info("stats")["total_error_replies"])


def methods(args: argparse.Namespace) -> list[Method]:
    """What is measured, and through how many cycles."""
    few = 1 if args.quick else 10
    many = 5 if args.quick else args.cycles
    return [
        Method("batched", "auto", many),
        Method("batched, paced", "auto", many, cycle_s=_PACE_S, parts=math.gcd(many, _PARTS)),
        Method("batched, int3", "int3", 2 * few),
        Method("one by one", "int3", 1 if args.quick else args.slow_cycles, one_by_one=True),
        Method("threads stopped", "stop", 2 * few),
    ]


def goals(rows: list[Row]) -> list[Goal]:
    """What issue 5 asks for."""
    by_name = {row.method.name: row for row in rows}
    batched, single = by_name["batched"], by_name["one by one"]
    paced = by_name["batched, paced"]
    share = paced.share if paced.is_steady else None
    times = single.scaled_s / batched.scaled_s
    return [
        Goal(f"{len(batched.sites)} tracers, 500 cycles, batched", batched.scaled_s, MOST_S, "s"),
        Goal("one by one by batched", times, TIMES_FASTER, "times", at_least=True),
        Goal(
            "the same in the engine",
            single.engine_ms / batched.engine_ms,
            TIMES_FASTER,
            "times",
            at_least=True,
        ),
        Goal("throughput of Redis over a minute", share, LEAST_SHARE, at_least=True),
        Goal("failed requests", sum(row.failed for row in rows), 0),
    ]


def available() -> tuple[list[str], list[str]]:
    """The tracers that a trace can be switched to, and those that it cannot yet."""
    there = any(hasattr(module, "BRANCH") for module in (tracers, one_trace))
    names = [name for name in TRACERS if name != BRANCH or there]
    return names, [name for name in TRACERS if name not in names]


def say(rows: list[Row], missing: list[str]) -> None:
    """The tables, and the arithmetic of what was scaled."""
    if missing:
        print(f"left out, a trace cannot be switched to it yet: {', '.join(missing)}")
    print("\n" + common.table(HEAD, [row.cells() for row in rows]) + "\n")
    for row in rows:
        if row.method.cycles != CYCLES:
            print(
                f"{row.method.name}: {row.spent.real:.2f} s / {row.method.cycles} cycles"
                f" x {CYCLES} = {row.scaled_s:,.1f} s"
            )
    by_name = {row.method.name: row for row in rows}
    single = by_name["one by one"].scaled_s
    for name in ("batched", "batched, int3"):
        other = by_name[name].scaled_s
        print(f"one by one / {name}: {single:,.1f} s / {other:,.1f} s = {single / other:,.0f}")
        ours, theirs = by_name[name].engine_ms, by_name["one by one"].engine_ms
        times = theirs / ours
        print(f"  in the engine: {theirs:,.1f} ms / {ours:,.2f} ms a cycle = {times:,.0f}")
    head = ("tracer", "sites", *(f"{row.method.name}: on, off ms" for row in rows))
    cells = [
        [name, f"{count:,}", *(figure(median(row.switch_ms[name])) for row in rows)]
        for name, count in rows[0].sites.items()
    ]
    print("\n" + common.table(head, cells))
    firsts = ", ".join(f"{row.method.name} {row.first_s:.2f} s" for row in rows)
    print(f"\nfirst cycle (find, plan, map): {firsts}")


def arguments() -> argparse.Namespace:
    made = common.parser(ABOUT, "seed")
    made.add_argument("--cycles", type=int, default=CYCLES, help="of the batched run")
    made.add_argument("--slow-cycles", type=int, default=2, help="one by one")
    return made.parse_args()


def main() -> int:
    """Measure all methods; returns 1 when something went wrong, not when it is slow."""
    args = arguments()
    facts = common.machine()
    common.say_machine(facts)
    directory = built("redis")
    names, missing = available()
    rows: list[Row] = []
    requests = _REQUESTS // 10 if args.quick else _REQUESTS
    with Redis(directory, "seed") as redis:
        redis.wait_until_up()
        with Load(redis, requests) as load:
            bench = Bench(redis, names, 1 if args.quick else 5)
            for method in methods(args):
                print(f"{method.name}, {method.cycles} cycles", file=sys.stderr)
                rows.append(bench.measure(method, load))
        rows[-1].failed += failures(redis, load) - sum(row.failed for row in rows)
    say(rows, missing)
    aims = goals(rows)
    common.say_goals(aims)
    problems = [line for row in rows for line in row.problems]
    print("\n".join(problems), file=sys.stderr, end="\n" if problems else "")
    result = {"machine": facts, "quick": args.quick, "left_out": missing, "problems": problems}
    result["rows"] = [row.as_dict() for row in rows]
    result["goals"] = [goal.as_dict() for goal in aims]
    common.write_json(args.json, result)
    return 1 if any(row.failed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
