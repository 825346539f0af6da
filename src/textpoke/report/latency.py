# SPDX-License-Identifier: Apache-2.0
"""The reports of wakeup_rt and irqsoff: the longest one as ftrace shows it, tables, JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke.call_rows import open_calls
from textpoke.callers import Callers
from textpoke.report.analysed import Analysed, spread_record, us
from textpoke.report.layout import columns
from textpoke.sections import KINDS, attempts, sections
from textpoke.spread import spread
from textpoke.unseen_waits import looks
from textpoke.wakeup import FAMILIES, wakes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from textpoke.capture import Capture
    from textpoke.sections import Attempts, Sections
    from textpoke.wakeup import Wakes

_MOST_INSIDE = 200
"""Calls that are shown of the longest one."""
_MARKS = ((10**9, "$"), (10**8, "@"), (10**7, "*"), (10**6, "#"), (10**5, "!"), (10**4, "+"))
"""ftrace's marks for what takes longer than so many nanoseconds until the next line."""
_SIGNALS = KINDS.index("signals")
_HEADER = ["COUNT", "TOTAL US", "P50 US", "P99 US", "MAX US"]


@dataclass(frozen=True, slots=True)
class _Longest:
    """One latency with all that is known of it.

    Attributes:
        what: "wakeup_rt", "irqsoff" or "signals".
        latency_ns: How long.
        start_ns: Since when.
        object: What it is about, in words.
        began: Row of the call that began it.
        ended: Row of the call that ended it.
        stacks: For each thread its open calls, outermost first.
        inside: Rows of the calls meanwhile, by time, at most `_MOST_INSIDE`.
        calls_inside: How many there were.
    """

    what: str
    latency_ns: int
    start_ns: int
    object: str
    began: int
    ended: int
    stacks: list[tuple[int, list[int]]]
    inside: list[int]
    calls_inside: int


@dataclass(frozen=True, slots=True)
class _Table:
    title: str
    header: list[str]
    rows: list[tuple[list[str], dict[str, object]]]


def lines(capture: Capture, *, limit: int | None = None) -> Iterator[str]:
    """The facts, the longest one in ftrace's latency format, and the tables, line by line.

    Args:
        capture: Open; its tracer is "wakeup_rt" or "irqsoff".
        limit: At most so many rows in each table, those with the most time.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    with Callers(capture) as names:
        yield from _lines(Analysed.of(capture, names), limit)


def _lines(analysed: Analysed, limit: int | None) -> Iterator[str]:
    facts, longest, tables = _found(analysed, limit)
    yield from analysed.head(facts)
    for one in longest:
        yield ""
        yield from _latency_format(analysed, one)
    for table in tables:
        if not table.rows:
            continue
        yield ""
        yield from columns(table.header, [cells for cells, _ in table.rows], left=table.header[-1:])


def records(capture: Capture, *, limit: int | None = None) -> dict[str, object]:
    """The same as one JSON object, unrounded.

    Args:
        capture: Open; its tracer is "wakeup_rt" or "irqsoff".
        limit: At most so many rows in each table.

    Raises:
        CaptureFormat: the file changed while it was read.
    """
    with Callers(capture) as names:
        return _records(Analysed.of(capture, names), limit)


def _records(analysed: Analysed, limit: int | None) -> dict[str, object]:
    _, longest, tables = _found(analysed, limit)
    return {
        **analysed.facts(),
        "longest": [_record(analysed, one) for one in longest],
        **{table.title: [record for _, record in table.rows] for table in tables},
    }


def _found(analysed: Analysed, limit: int | None) -> tuple[str, list[_Longest], list[_Table]]:
    if analysed.capture.meta.tracer == "irqsoff":
        return _critical(analysed, limit)
    return _woken(analysed, limit)


def _woken(analysed: Analysed, limit: int | None) -> tuple[str, list[_Longest], list[_Table]]:
    waiting = looks(analysed.capture.notes, analysed.clock)
    found = wakes(analysed.calls, analysed.functions, waiting)
    waiters = analysed.calls.tid[found.waiter].astype(np.int64)
    wakers = analysed.calls.tid[found.waker].astype(np.int64)
    tables = [
        _objects(analysed, found.object, found.family, found.latency_ns, FAMILIES, limit),
        _threads(analysed, "by_woken_thread", "WOKEN THREAD", waiters, found.latency_ns, limit),
        _threads(analysed, "by_waking_thread", "WAKING THREAD", wakers, found.latency_ns, limit),
    ]
    longest = [_longest_wake(analysed, found)] if len(found) else []
    return f"{len(found):,} wakes of {found.waits:,} waits and locks taken", longest, tables


def _critical(analysed: Analysed, limit: int | None) -> tuple[str, list[_Longest], list[_Table]]:
    masks = _masks(analysed.capture.notes)
    held = sections(analysed.calls, analysed.functions, masks)
    tried = attempts(analysed.calls, analysed.functions)
    longest = [
        _longest_section(analysed, held, row)
        for row in (held.longest(signals=False), held.longest(signals=True))
        if row is not None
    ]
    longest.sort(key=lambda one: -one.latency_ns)
    masked = held.kind == _SIGNALS
    tids = analysed.calls.tid[held.taken].astype(np.int64)
    objects = _objects(
        analysed, held.object[~masked], held.kind[~masked], held.held_ns[~masked], KINDS, limit
    )
    tables = [
        objects,
        _contention(analysed, tried, limit),
        _threads(analysed, "by_thread", "HOLDER", tids[~masked], held.held_ns[~masked], limit),
        _threads(
            analysed, "masked_by_thread", "MASKED IN", tids[masked], held.held_ns[masked], limit
        ),
    ]
    locks, signals = int((~masked).sum()), int(masked.sum())
    return f"{locks:,} holds of locks, {signals:,} of masked signals", longest, tables


def _longest_wake(analysed: Analysed, found: Wakes) -> _Longest:
    row = int(np.argmax(found.latency_ns))
    waker, waiter = int(found.waker[row]), int(found.waiter[row])
    start_ns, latency_ns = int(found.wake_ns[row]), int(found.latency_ns[row])
    inside = _inside(analysed, start_ns, start_ns + latency_ns, None)
    return _Longest(
        "wakeup_rt",
        latency_ns,
        start_ns,
        _object(analysed, FAMILIES[int(found.family[row])], int(found.object[row])),
        waker,
        waiter,
        [
            (int(analysed.calls.tid[call]), open_calls(analysed.calls, call))
            for call in (waker, waiter)
        ],
        inside[:_MOST_INSIDE].tolist(),
        len(inside),
    )


def _longest_section(analysed: Analysed, held: Sections, row: int) -> _Longest:
    taken, released = int(held.taken[row]), int(held.released[row])
    start_ns, held_ns = int(held.start_ns[row]), int(held.held_ns[row])
    kind = int(held.kind[row])
    tid = int(analysed.calls.tid[taken])
    inside = _inside(analysed, start_ns, start_ns + held_ns, tid)
    return _Longest(
        "signals" if kind == _SIGNALS else "irqsoff",
        held_ns,
        start_ns,
        _object(analysed, KINDS[kind], int(held.object[row])),
        taken,
        released,
        [(tid, open_calls(analysed.calls, taken))],
        inside[:_MOST_INSIDE].tolist(),
        len(inside),
    )


def _inside(analysed: Analysed, first_ns: int, last_ns: int, tid: int | None) -> NDArray[np.int64]:
    calls = analysed.calls
    during = (calls.start_ns >= first_ns) & (calls.start_ns <= last_ns)
    if tid is not None:
        during &= calls.tid == tid
    rows = np.flatnonzero(during)
    return rows[np.argsort(calls.start_ns[rows], kind="stable")]


def _object(analysed: Analysed, kind: str, address: int) -> str:
    if kind == KINDS[_SIGNALS]:
        return "signals masked"
    place = analysed.variable(address)
    return f"{kind} {address:#x}" + (f" ({place})" if place else "")


def _latency_format(analysed: Analysed, one: _Longest) -> Iterator[str]:
    calls = analysed.calls
    cpus = f", #P:{analysed.capture.meta.cpus}" if analysed.capture.meta.cpus else ""
    ended_tid = int(calls.tid[one.ended])
    yield f"# tracer: {'irqsoff' if one.what == 'signals' else one.what}"
    yield "#"
    yield "# --------------------------------------------------------------------"
    shown = f"#{len(one.inside)}/{one.calls_inside}"
    yield f"# latency: {us(one.latency_ns)} us, {shown}{cpus}"
    yield "#    -----------------"
    yield f"#    | task: {analysed.label(ended_tid)}"
    yield f"#    | object: {one.object}"
    yield "#    -----------------"
    yield f"#  => started at: {_with_caller(analysed, one.began)}"
    yield f"#  => ended at:   {_with_caller(analysed, one.ended)}"
    for tid, stack in one.stacks:
        names = " > ".join(analysed.function(row) for row in stack)
        yield f"#  => stack of {analysed.label(tid)}: {names}"
    yield "#"
    yield "#             cmd-pid              time  function"
    yield from _body(analysed, one)


def _body(analysed: Analysed, one: _Longest) -> Iterator[str]:
    # Both ends with the calls between them; the mark says how long it is until the next line.
    calls = analysed.calls
    end_ns = one.start_ns + one.latency_ns
    middle = [row for row in one.inside if row not in (one.began, one.ended)]
    marks = [
        (one.start_ns, one.began),
        *((int(calls.start_ns[row]), row) for row in middle),
        (end_ns, one.ended),
    ]
    outer = min(int(calls.depth[row]) for _, row in marks)
    for index, (ts_ns, row) in enumerate(marks):
        following = marks[index + 1][0] if index + 1 < len(marks) else ts_ns
        indent = "  " * (int(calls.depth[row]) - outer)
        name, _, tid = analysed.label(int(calls.tid[row])).rpartition("-")
        yield (
            f"{name:>16}-{tid:<7} {us(ts_ns - one.start_ns):>12}us{_mark(following - ts_ns)}: "
            f"{indent}{_with_caller(analysed, row)}"
        )
    if one.calls_inside > len(one.inside):
        yield f"# {one.calls_inside - len(one.inside):,} more calls are not shown"


def _mark(ns: int) -> str:
    return next((mark for least, mark in _MARKS if ns > least), " ")


def _with_caller(analysed: Analysed, row: int) -> str:
    caller = analysed.caller(row)
    return f"{analysed.function(row)} <-{caller}" if caller != "?" else analysed.function(row)


def _objects(
    analysed: Analysed,
    address: NDArray[np.uint64],
    kind: NDArray[np.int64],
    value_ns: NDArray[np.int64],
    kinds: Sequence[str],
    limit: int | None,
) -> _Table:
    # One row per object; what is freed and made again as another kind is two.
    distinct, key = _pairs(address, kind)

    def name(group: int) -> tuple[str, dict[str, object]]:
        at, of_kind = distinct[group]
        place = analysed.variable(at)
        record = {"address": at, "kind": kinds[of_kind], "symbol": place}
        return _object(analysed, kinds[of_kind], at), record

    return _table("by_object", "OBJECT", key, value_ns, name, limit)


def _threads(
    analysed: Analysed,
    title: str,
    heading: str,
    tid: NDArray[np.int64],
    value_ns: NDArray[np.int64],
    limit: int | None,
) -> _Table:
    def name(group: int) -> tuple[str, dict[str, object]]:
        return analysed.label(group), {"tid": group, "name": analysed.capture.threads.get(group)}

    return _table(title, heading, tid, value_ns, name, limit)


def _table(
    title: str,
    heading: str,
    key: NDArray[np.int64],
    value_ns: NDArray[np.int64],
    name: Callable[[int], tuple[str, dict[str, object]]],
    limit: int | None,
) -> _Table:
    rows = []
    for group, count, total, p50, p99, largest in list(spread(key, value_ns).rows())[:limit]:
        text, record = name(group)
        cells = [f"{count:,}", *(us(value) for value in (total, p50, p99, largest)), text]
        rows.append((cells, {**record, **spread_record((count, total, p50, p99, largest))}))
    return _Table(title, [*_HEADER, heading], rows)


def _contention(analysed: Analysed, tried: Attempts, limit: int | None) -> _Table:
    # What it cost to get each lock: time in the calls that take it.
    distinct, key = _pairs(tried.object, tried.kind)
    failed = np.bincount(key, weights=tried.failed, minlength=len(distinct)).astype(np.int64)

    def name(group: int) -> tuple[str, dict[str, object]]:
        at, kind = distinct[group]
        place = analysed.variable(at)
        record = {
            "address": at,
            "kind": KINDS[kind],
            "symbol": place,
            "failed": int(failed[group]),
        }
        lost = f", {int(failed[group]):,} not had" if failed[group] else ""
        return f"{_object(analysed, KINDS[kind], at)}{lost}", record

    return _table("taking", "TAKING", key, tried.wait_ns, name, limit)


def _pairs(
    address: NDArray[np.uint64], kind: NDArray[np.int64]
) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
    addresses, place = np.unique(address, return_inverse=True)
    most = int(kind.max(initial=0)) + 1
    pairs, key = np.unique(place * most + kind, return_inverse=True)
    distinct = [(int(addresses[pair // most]), pair % most) for pair in pairs.tolist()]
    return distinct, key.astype(np.int64)


def _masks(notes: Sequence[dict[str, object]]) -> dict[int, int]:
    # Field `masks`: thread id to what it had masked when the capture began.
    found: dict[int, int] = {}
    for note in notes:
        masks = note.get("masks")
        for tid, mask in masks.items() if isinstance(masks, dict) else ():
            if not (isinstance(tid, str) and tid.isascii() and tid.isdecimal() and len(tid) <= 10):
                continue
            if type(mask) is int and 0 <= mask < 1 << 64:
                found[int(tid)] = mask
    return found


def _record(analysed: Analysed, one: _Longest) -> dict[str, object]:
    calls = analysed.calls
    return {
        "what": one.what,
        "latency_ns": one.latency_ns,
        "start_ns": one.start_ns,
        "object": one.object,
        "started_at": _call(analysed, one.began),
        "ended_at": _call(analysed, one.ended),
        "stacks": [
            {"tid": tid, "functions": [analysed.function(row) for row in stack]}
            for tid, stack in one.stacks
        ],
        "calls_inside": one.calls_inside,
        "inside": [
            {
                **_call(analysed, row),
                "after_ns": int(calls.start_ns[row]) - one.start_ns,
                "depth": int(calls.depth[row]),
            }
            for row in one.inside
        ],
    }


def _call(analysed: Analysed, row: int) -> dict[str, object]:
    return {
        "tid": int(analysed.calls.tid[row]),
        "function": analysed.function(row),
        "caller": analysed.caller(row),
    }
