# SPDX-License-Identifier: Apache-2.0
"""The irqsoff tracer's answers: critical sections, from having a lock to giving it back.

A section is one thread's hold of one object: from the return of the call that took it to the entry
of the call that releases it; what is taken again meanwhile (recursive mutexes, readers) is a part
of it. With signals masked: from the return of the call that masked the first one to the entry of
the call after which none is. `docs/tracing.md` has the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke.call_rows import rows_of
from textpoke.group_math import levels, numbered

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from textpoke.call_rows import CallRows
    from textpoke.calls import Calls
    from textpoke.libc_calls import Function

    Ints = NDArray[np.int64]

KINDS = ("mutex", "rwlock", "spin", "signals")
"""What a section holds; "signals": these are masked, and there is no object."""
_SIGNALS = KINDS.index("signals")
_TAKES = ("acquire", "try", "share", "tryshare")
_SIG_BLOCK, _SIG_UNBLOCK, _SIG_SETMASK = range(3)
_ALL = np.uint64((1 << 64) - 1)
_MASKABLE = np.uint64(((1 << 64) - 1) & ~sum(1 << signal - 1 for signal in (9, 19, 32, 33)))
"""Two that the kernel never masks, and two that glibc does not let a program mask."""
_NONE = np.uint64(0)


@dataclass(frozen=True, slots=True)
class Sections:
    """Columns with one row per section, in order of their begin.

    Attributes:
        taken: int64, row of the call in the `Calls` that began it.
        released: int64, row of the call that ended it.
        object: uint64, address of the lock; 0 for masked signals.
        kind: int64, index into `KINDS`.
        start_ns: int64.
        held_ns: int64.
    """

    taken: Ints
    released: Ints
    object: NDArray[np.uint64]
    kind: Ints
    start_ns: Ints
    held_ns: Ints

    def __len__(self) -> int:
        return len(self.taken)

    def longest(self, *, signals: bool) -> int | None:
        """The row of the longest section of locks, or of masked signals; None if there is none."""
        rows = np.flatnonzero((self.kind == _SIGNALS) == signals)
        return int(rows[np.argmax(self.held_ns[rows])]) if len(rows) else None


@dataclass(frozen=True, slots=True)
class Attempts:
    """Columns with one row per call that takes a lock: what it costs to get it.

    Attributes:
        object: uint64, address of the lock.
        kind: int64, index into `KINDS`.
        wait_ns: int64, time in the call.
        failed: bool, the lock was not had: busy, timed out, an error.
    """

    object: NDArray[np.uint64]
    kind: Ints
    wait_ns: Ints
    failed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Steps:
    # Holds going up and down: who, what, when, by how much, in which call.
    tid: Ints
    object: NDArray[np.uint64]
    kind: Ints
    ts_ns: Ints
    step: Ints
    row: Ints


def sections(
    calls: Calls, functions: Sequence[Function], masks: Mapping[int, int] | None = None
) -> Sections:
    """Every critical section that begins and ends within a capture.

    Args:
        calls: All calls.
        functions: The function of each site (`libc_calls.known`).
        masks: Signals that each thread had masked already when the capture began, bit n-1 for
            signal n. They are not counted as masked.
    """
    rows = rows_of(calls, functions)
    held = _joined([_pair(_lock_steps(rows)), _pair(_mask_steps(rows, masks or {}))])
    order = np.lexsort((held.held_ns, held.start_ns))
    return Sections(
        held.taken[order],
        held.released[order],
        held.object[order],
        held.kind[order],
        held.start_ns[order],
        held.held_ns[order],
    )


def attempts(calls: Calls, functions: Sequence[Function]) -> Attempts:
    """Every finished call that takes a lock."""
    rows = rows_of(calls, functions)
    takes = rows.take(rows.which(lambda f: f.family in KINDS and f.role in _TAKES))
    takes = takes.take(takes.is_finished)
    return Attempts(
        takes.addresses("object"), _kinds(takes), takes.end_ns - takes.start_ns, ~takes.succeeded
    )


def _pair(steps: _Steps) -> Sections:
    # A section begins where a level leaves 0 and ends where it comes back to it.
    target, tid = numbered(steps.object)[0], numbered(steps.tid)[0]
    hold = target * (1 + tid.max(initial=0)) + tid
    # At one moment in program order; one call that does both releases first.
    order = np.lexsort((steps.step, steps.row, steps.ts_ns, hold))
    hold, step = hold[order], steps.step[order]
    level = levels(hold, step)
    before = np.zeros(len(level), dtype=np.int64)
    before[1:] = np.where(hold[1:] == hold[:-1], level[:-1], 0)
    begin = np.flatnonzero((before == 0) & (level > 0))
    end = np.flatnonzero((before > 0) & (level == 0))
    # Behind every begin stands its end, or, of what is still held, the next hold's begin.
    place = np.searchsorted(end, begin)
    has_end = place < len(end)
    begin, end = begin[has_end], end[place[has_end]]
    same = hold[begin] == hold[end] if len(begin) else np.zeros(0, dtype=bool)
    taken, released = order[begin[same]], order[end[same]]
    start_ns = steps.ts_ns[taken]
    return Sections(
        steps.row[taken],
        steps.row[released],
        steps.object[taken],
        steps.kind[taken],
        start_ns,
        steps.ts_ns[released] - start_ns,
    )


def _lock_steps(rows: CallRows) -> _Steps:
    # A wait on a condition variable releases its mutex and takes it again, in time or not.
    locks = rows.take(rows.which(lambda f: f.family in KINDS))
    takes = locks.take(locks.which(lambda f: f.role in _TAKES) & locks.succeeded)
    releases = locks.take(locks.which(lambda f: f.role == "release") & _released(locks))
    waits = rows.of("cond", ("wait",))
    returns = waits.take(waits.is_finished)
    mutex = KINDS.index("mutex")
    parts = [
        (takes, takes.addresses("object"), _kinds(takes), takes.end_ns, 1),
        (releases, releases.addresses("object"), _kinds(releases), releases.start_ns, -1),
        (waits, waits.addresses("mutex"), np.full(len(waits), mutex), waits.start_ns, -1),
        (returns, returns.addresses("mutex"), np.full(len(returns), mutex), returns.end_ns, 1),
    ]
    return _Steps(
        np.concatenate([part[0].tid for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] for part in parts]),
        np.concatenate([part[3] for part in parts]),
        np.concatenate([np.full(len(part[0]), part[4]) for part in parts]),
        np.concatenate([part[0].row for part in parts]),
    )


def _mask_steps(rows: CallRows, masks: Mapping[int, int]) -> _Steps:
    # A call that masks takes effect by its return, one that unmasks from its entry on.
    changes = rows.of("mask", ("mask",))
    given = changes.take(changes.addresses("given") != 0)
    asked = given.take(given.is_finished & (given.results() == 0))
    order = np.lexsort((asked.row, asked.tid))
    asked = type(asked)(asked.calls, asked.row[order], asked.function[order], asked.functions)
    tid = asked.tid
    first = np.diff(tid, prepend=-1) != 0
    masked = _masks_after(asked, first, masks) != 0
    before = np.roll(masked, 1) & ~first
    step = masked.astype(np.int64) - before
    changed = np.flatnonzero(step)
    ts_ns = np.where(step > 0, asked.end_ns, asked.start_ns)[changed]
    kind = np.full(len(changed), _SIGNALS)
    nothing = np.zeros(len(changed), dtype=np.uint64)
    return _Steps(tid[changed], nothing, kind, ts_ns, step[changed], asked.row[changed])


def _masks_after(
    asked: CallRows, first: NDArray[np.bool_], masks: Mapping[int, int]
) -> NDArray[np.uint64]:
    # What is masked beyond what was masked in the beginning, after each call. Each call keeps some
    # bits and adds some; two in a row are one such step, so the steps are folded by doubling.
    how, word = asked.numbers("how"), asked.addresses("set") & _MASKABLE
    kept = np.select([how == _SIG_BLOCK, how == _SIG_UNBLOCK], [_ALL, ~word], _NONE)
    added = np.where(how == _SIG_UNBLOCK, _NONE, word)
    at_first = np.array([masks.get(tid, 0) for tid in asked.tid[first].tolist()], dtype=np.uint64)
    added[first] |= kept[first] & at_first
    kept[first] = 0
    distance = 1
    while distance < len(kept):
        added[distance:] |= kept[distance:] & added[:-distance]
        kept[distance:] &= kept[:-distance]
        distance *= 2
    thread = np.cumsum(first) - 1
    return added & ~at_first[thread] if len(added) else added


def _kinds(rows: CallRows) -> Ints:
    of_function = [KINDS.index(f.family) if f.family in KINDS else 0 for f in rows.functions]
    return np.array(of_function, dtype=np.int64)[rows.function]


def _released(rows: CallRows) -> NDArray[np.bool_]:
    # The section ends at the entry, so a release that has not returned yet counts as well.
    released: NDArray[np.bool_] = rows.results(otherwise=0) == 0
    return released


def _joined(parts: Sequence[Sections]) -> Sections:
    return Sections(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("taken", "released", "object", "kind", "start_ns", "held_ns")
        )
    )
