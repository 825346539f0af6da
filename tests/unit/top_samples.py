# SPDX-License-Identifier: Apache-2.0
"""Samples that are made up: functions that were called so often, each call so long."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from textpoke._errors import ControlFailed, TargetExited
from textpoke.profile_rows import BUCKETS, bucket_of
from textpoke.top.model import Function, Model, Sample
from textpoke.top.stretch import Neighbours, Share

if TYPE_CHECKING:
    from collections.abc import Callable

    from textual.pilot import Pilot

PATIENCE_S = 30.0

FUNCTIONS = [
    Function("prog", "setCommand"),
    Function("prog", "getCommand"),
    Function("libc.so.6", "malloc"),
    Function("libc.so.6", "free"),
]


async def until(pilot: Pilot[None], true: Callable[[], object]) -> None:
    """Let a screen go on until something is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline
        await pilot.pause(0.02)


def sample(at_s: float, calls: dict[int, int], ticks: int = 100, **facts: float) -> Sample:
    """What there is when functions were called so often, each time for so many ticks."""
    function = np.array(sorted(f for f, n in calls.items() if n), np.int64)
    count = np.array([calls[f] for f in function], np.int64)
    buckets = np.zeros((len(function), BUCKETS), np.uint32)
    buckets[:, bucket_of(ticks)] = count
    total = count * ticks
    return Sample(at_s, function, count, count, total, total // 2, buckets, **facts)  # type: ignore[arg-type]


def model(calls: dict[int, int], seconds: float = 1.0) -> Model:
    """A model that has seen these calls in its last interval."""
    found = Model(1.0)
    found.step(sample(0.0, {}), FUNCTIONS)
    found.step(sample(seconds, calls), FUNCTIONS)
    return found


@dataclass(frozen=True)
class Work:
    """What a function does in a made-up second.

    Attributes:
        calls: In its busiest second.
        ticks: Of most calls.
        period: Seconds from one busiest second to the next; 0: all are the same.
        self_percent: Of its time.
        timed: Times are known.
    """

    calls: int
    ticks: int
    period: int = 0
    self_percent: int = 100
    timed: bool = True

    def calls_before(self, second: int) -> int:
        if not self.period:
            return self.calls * second
        return sum(self._calls_in(past) for past in range(second))

    def _calls_in(self, second: int) -> int:
        return self.calls * abs(2 * (second % self.period) - self.period) // self.period


BUSY = {
    Function("redis-server", "aeProcessEvents"): Work(1_310, 1_700_000, 23, 1),
    Function("redis-server", "readQueryFromClient"): Work(61_200, 12_300, 17, 12),
    Function("redis-server", "processCommand"): Work(61_200, 4_100, 17, 40),
    Function("redis-server", "setCommand"): Work(30_600, 2_150, 17, 22),
    Function("redis-server", "getCommand"): Work(30_599, 890, 17, 35),
    Function("redis-server", "lookupKeyReadWithFlags"): Work(91_800, 240, 17),
    Function("redis-server", "siphash"): Work(153_000, 44, 17),
    Function("redis-server", "clusterCron"): Work(10, 9_400),
    Function("redis-server", "serverCron"): Work(10, 3_100_000, 60, 3),
    Function("libc.so.6", "malloc"): Work(1_234_567, 31, 11),
    Function("libc.so.6", "free"): Work(1_230_001, 19, 11),
    Function("libc.so.6", "epoll_wait"): Work(1_310, 520_000_000, 23),
    Function("libc.so.6", "pthread_cond_wait@@GLIBC_2.3.2"): Work(1, 2_500_000_000),
    Function(
        "libstdc++.so.6.0.33",
        "std::__cxx11::basic_string<char, std::char_traits<char>, "
        "std::allocator<char> >::_M_replace(unsigned long, unsigned long, char const*, "
        "unsigned long)",
    ): Work(820, 150, 9),
    Function("libjemalloc-of-a-very-long-name.so.2", "je_arena_tcache_fill_small"): Work(99, 77, 5),
    Function("[vdso]", "__vdso_clock_gettime"): Work(700_000, 21),
    Function("redis-server", "coroutine_entry"): Work(42, 100, 0, 100, timed=False),
    Function("redis-server", "never_called"): Work(0, 0),
}
"""A server at work, with what is hard to show: long names, times from ns to s, no times."""


@dataclass(frozen=True)
class Day:
    """Samples of a made-up server, second after second: always the same ones."""

    work: dict[Function, Work]
    facts: dict[str, int] = field(default_factory=dict)

    def sample(self, second: int) -> Sample:
        work = list(self.work.values())
        calls = np.array([each.calls_before(second) for each in work], np.int64)
        chosen = np.flatnonzero(calls)
        buckets = np.zeros((len(chosen), BUCKETS), np.uint32)
        timed, total, own = np.zeros((3, len(work)), np.int64)
        for line, place in enumerate(chosen.tolist()):
            each, count = work[place], int(calls[place])
            if not each.timed:
                continue
            slow = count // 40  # so that a p99 differs from a p50
            buckets[line, bucket_of(each.ticks)] = count - slow
            buckets[line, bucket_of(each.ticks * 9)] += slow
            timed[place], total[place] = count, (count + 8 * slow) * each.ticks
            own[place] = total[place] * each.self_percent // 100
        return Sample(
            float(second),
            chosen,
            calls[chosen],
            timed[chosen],
            total[chosen],
            own[chosen],
            buckets,
            cost_ns=61e6 * second,
            cpu_ns=934_000_000 * second,
            **self.facts,
        )


@dataclass
class FakeSource:
    """A source whose functions are called on and on; it notes what is asked of it."""

    functions: list[Function] = field(default_factory=lambda: list(FUNCTIONS))
    calls: dict[int, int] = field(default_factory=lambda: {0: 10, 1: 20, 2: 30})
    off: set[int] = field(default_factory=set)
    with_times: bool = True
    refuses: bool = False
    pid: int = 4711
    program: str = "prog"
    patched: int = 4
    refused: int = 1
    ns_per_tick: float = 1.0
    samples: int = 0
    gone: threading.Event = field(default_factory=threading.Event)

    def wait(self, seconds: float) -> None:
        if self.gone.wait(seconds):
            raise TargetExited(self.pid, "the watch")

    def sample(self) -> Sample:
        self.samples += 1
        calls = {f: n * self.samples for f, n in self.calls.items()}
        return sample(time.monotonic(), calls)

    def switch(self, function: int, *, on: bool) -> None:
        if self.refuses:
            raise ControlFailed("switch", "somebody else has changed it")
        (self.off.discard if on else self.off.add)(function)

    def switch_times(self) -> None:
        self.with_times = not self.with_times

    def look_into(self, function: int) -> Neighbours:
        return Neighbours(0.3, 7, [Share(f"caller_of_{self.functions[function].name}", 7, 700)])
