# SPDX-License-Identifier: Apache-2.0
"""Calls made by hand, for the tests of everything that analyses them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from textpoke.calls import Calls
from textpoke.libc_calls import OTHER, TRACERS, Function

FAULT = b"<fault>"


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
