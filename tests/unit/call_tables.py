# SPDX-License-Identifier: Apache-2.0
"""Calls made by hand, for the tests of everything that analyses them."""

from __future__ import annotations

from dataclasses import dataclass, field

import captures
import numpy as np

from textpoke.calls import Calls
from textpoke.libc_calls import OTHER, TRACERS, Function
from textpoke.payload import layouts_json

NAMES = {100: "server", 101: "worker"}
TICKS_PER_US = 3_000
LOCK, CONDITION = 0x5000, 0x6000


@dataclass(frozen=True)
class Call:
    """One call; `words` are by name, `result` the exit's; `end` None: it never returned."""

    tid: int
    name: str
    start: int
    end: int | None
    words: dict[str, int | str] = field(default_factory=dict)
    result: int = 0


def call(tid: int, name: str, start: int, end: int | None, result: int = 0, **words) -> Call:
    return Call(tid, name, start, end, words, result)


def table(tracer: str, calls: list[Call]) -> tuple[Calls, list[Function]]:
    """The calls as columns and the function of each site: a site per name."""
    by_name = {function.name: function for function in TRACERS[tracer]}
    names = sorted({c.name for c in calls})
    functions = [by_name.get(name, OTHER) for name in names]
    calls = sorted(calls, key=lambda c: (c.tid, c.start, -(c.end or 1 << 60)))
    words: list[int] = []
    entry_data, exit_data, parents, depths = [], [], [], []
    stack: list[int] = []
    for row, c in enumerate(calls):
        while stack and not _contains(calls[stack[-1]], c):
            stack.pop()
        parents.append(stack[-1] if stack else -1)
        depths.append(len(stack))
        stack.append(row)
        begin, end = words_of(c, by_name)
        entry_data.append(len(words) if begin else -1)
        words += begin
        exit_data.append(len(words) if end and c.end is not None else -1)
        words += end if c.end is not None else []
    made = Calls(
        tid=np.array([c.tid for c in calls], dtype=np.uint32),
        site=np.array([names.index(c.name) for c in calls], dtype=np.int32),
        start_ns=np.array([c.start for c in calls], dtype=np.int64),
        end_ns=np.array([-1 if c.end is None else c.end for c in calls], dtype=np.int64),
        self_ns=np.zeros(len(calls), dtype=np.int64),
        depth=np.array(depths, dtype=np.uint32),
        parent=np.array(parents, dtype=np.int64),
        entry_data=np.array(entry_data, dtype=np.int64),
        exit_data=np.array(exit_data, dtype=np.int64),
        words=np.array(words, dtype=np.uint64),
        layouts={i: f.layout for i, f in enumerate(functions) if f is not OTHER},
        names=[f"libc.so.6!{name}" for name in names],
    )
    return made, functions


def words_of(c: Call, by_name: dict[str, Function]) -> tuple[list[int], list[int]]:
    """What the agent records of a call: at its entry, and at its exit."""
    function = by_name.get(c.name, OTHER)
    begin: list[int] = []
    for word in function.entry:
        begin += _words(c.words.get(word.name, 0), word.kind)
    return begin, [c.result & (1 << 64) - 1 for _ in function.exit]


def _contains(outer: Call, inner: Call) -> bool:
    if outer.tid != inner.tid:
        return False
    return outer.end is None or (inner.start < outer.end and (inner.end or 0) <= outer.end)


def _words(value: int | str, kind: str) -> list[int]:
    if not kind.startswith("str:"):
        assert isinstance(value, int)
        return [value & (1 << 64) - 1]
    size = 8 * int(kind.removeprefix("str:"))
    data = str(value).encode()[:size].ljust(size, b"\0")
    return np.frombuffer(data, dtype="<u8").tolist()


def recipe(tracer: str, calls: list[Call], **more: object) -> captures.Recipe:
    """A capture of these calls, which are in order of their start; times are in microseconds."""
    by_name = {function.name: function for function in TRACERS[tracer]}
    names = list(dict.fromkeys(c.name for c in calls))
    address = {name: 0x7F0000001000 + 16 * i for i, name in enumerate(names)}
    rings: dict[int, list[tuple[int, int, list[tuple[int, ...]]]]] = {}
    for order, c in enumerate(calls):
        at, rows = address[c.name], rings.setdefault(c.tid, [])
        begin, end = words_of(c, by_name)
        entry = [(c.start * TICKS_PER_US, at, 1), *captures.data(False, begin)]
        rows.append((c.start, order, entry))
        if c.end is not None:
            at_end = [(c.end * TICKS_PER_US, at, 2), *captures.data(True, end)]
            rows.append((c.end, -order, at_end))
    blocks = [
        captures.Ring(
            [row for _, _, group in sorted(rows, key=lambda r: r[:2]) for row in group],
            tid=tid,
            ring=number,
        )
        for number, (tid, rows) in enumerate(rings.items())
    ]
    meta = captures.meta(
        tracer=tracer,
        exe="/usr/bin/server",
        sites=[[address[n], "libc.so.6" if n in by_name else "server", n] for n in names],
        layouts=layouts_json({address[n]: by_name[n].layout for n in names if n in by_name}),
        modules=[],
        **more,
    )
    return captures.Recipe(blocks, meta=meta, threads=NAMES)


IO = [
    call(100, "open", 0, 5, 3, path="/var/log/x", caller=0x1234),
    call(100, "write", 10, 30, 100, fd=3, count=100, caller=0x1234),
    call(100, "write", 40, 42, 28, fd=3, count=28, caller=0x4321),
    call(101, "read", 50, 51, 7, fd=0, count=10, caller=0x1234),
    call(101, "read", 60, 61, -1, fd=9, count=10, caller=0x1234),
    call(100, "close", 70, 71, 0, fd=3, caller=0x1234),
    call(101, "recv", 80, None, fd=0, caller=0x1234),
]
FDS = [{"monotonic_ns": captures.START_NS, "files": {"0": "pipe:[7]"}}]
LOCKS = [
    call(100, "serve", 0, 500),
    call(100, "pthread_mutex_lock", 10, 20, object=LOCK, caller=0x11),
    call(100, "work", 30, 190),
    call(100, "compute", 40, 45),
    call(100, "pthread_mutex_unlock", 200, 201, object=LOCK, caller=0x22),
    call(101, "pthread_mutex_lock", 15, 205, object=LOCK, caller=0x11),
    call(101, "pthread_mutex_unlock", 210, 211, object=LOCK, caller=0x22),
    call(101, "pthread_sigmask", 300, 301, how=0, given=1, set=2, caller=0x33),
    call(101, "pthread_sigmask", 350, 351, how=1, given=1, set=2, caller=0x33),
]
WAKES = [
    call(101, "serve", 0, 90),
    call(101, "pthread_cond_wait", 10, 80, object=CONDITION, mutex=LOCK, caller=0x44),
    call(100, "produce", 40, 75),
    call(100, "pthread_cond_signal", 50, 51, object=CONDITION, caller=0x55),
    call(100, "more", 60, 70),
]
CROWD = [
    *(call(tid, "pthread_cond_wait", tid, 300 + tid, object=CONDITION) for tid in (1, 2, 3)),
    *(call(9, "pthread_cond_signal", start, start + 1, object=CONDITION) for start in (50, 60, 70)),
    *(call(tid, "sem_wait", 400 + tid, 500 + tid, object=LOCK) for tid in (1, 2)),
    *(call(9, "sem_post", start, start + 1, object=LOCK) for start in (420, 430)),
    *(call(tid, "pthread_barrier_wait", 600 + tid, 700 + tid, object=LOCK) for tid in (1, 2)),
]
"""Several waiters at a time."""
WAITING = {"tsc": captures.meta()["clock"]["tsc"] + 405 * TICKS_PER_US, "threads": {"3": LOCK}}
