# SPDX-License-Identifier: Apache-2.0
"""The wakeup_rt tracer's answers: from each wake to the woken thread running.

Latency is from the entry of the waker's call on an object to the return of the waiter's call on
it. Which wake belongs to which wait is told in `wake_rules`, with reasons in `docs/tracing.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from textpoke.call_rows import rows_of
from textpoke.group_math import latest_before, numbered
from textpoke.libc_calls import SYS_FUTEX
from textpoke.unseen_waits import Sleepers, sleepers, stretches, unseen
from textpoke.wake_rules import (
    EVERYBODY,
    NEVER_NS,
    Posts,
    Waits,
    joined,
    match_barrier,
    match_counted,
    match_last,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from textpoke.call_rows import CallRows
    from textpoke.calls import Calls
    from textpoke.libc_calls import Function
    from textpoke.unseen_waits import Look

    Ints = NDArray[np.int64]

FAMILIES = ("mutex", "rwlock", "cond", "sem", "futex", "barrier")
_SERIAL_THREAD = -1  # what one of a barrier's threads is told

_FUTEX_OPERATION = 127  # without FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME
_FUTEX_WAITS = (0, 9)
_FUTEX_WAKES = (1, 3, 4, 5, 10)


@dataclass(frozen=True, slots=True)
class Wakes:
    """Columns with one row per wake that was matched, in order of the waker's call.

    Attributes:
        waker: int64, row of the waker's call in the `Calls`.
        waiter: int64, row of the waiter's call.
        object: uint64, address of the mutex, condition variable, ...
        family: int64, index into `FAMILIES`.
        wake_ns: int64, entry of the waker's call.
        latency_ns: int64, from there to the return of the waiter's call.
        waits: Waits that returned success, matched or not: those on a free lock are among them.
    """

    waker: Ints
    waiter: Ints
    object: NDArray[np.uint64]
    family: Ints
    wake_ns: Ints
    latency_ns: Ints
    waits: int

    def __len__(self) -> int:
        return len(self.waker)

    @property
    def longest(self) -> int | None:
        """The row with the longest latency; None when there is none."""
        return int(np.argmax(self.latency_ns)) if len(self) else None


def wakes(calls: Calls, functions: Sequence[Function], looks: Sequence[Look] = ()) -> Wakes:
    """Every wake of a capture that can be matched to a wait.

    Args:
        calls: All calls.
        functions: The function of each site (`libc_calls.known`).
        looks: Which threads waited already when it was switched on, by time.
    """
    rows = rows_of(calls, functions)
    asleep = sleepers(calls, looks)
    parts = [
        _mutexes(rows),
        _rwlocks(rows),
        _conditions(rows.of("cond", ("wait", "wake", "wakeall")), asleep),
        _semaphores(rows.of("sem", ("wait", "try", "wake")), asleep),
        _futexes(rows.of("futex", ("futex",)), asleep),
        _barriers(rows.of("barrier", ("wait",))),
    ]
    waker = np.concatenate([part[0] for part in parts])
    waiter = np.concatenate([part[1] for part in parts])
    target = np.concatenate([part[2] for part in parts])
    family = np.repeat(np.arange(len(parts)), [len(part[0]) for part in parts])
    wake_ns = calls.start_ns[waker]
    order = np.argsort(wake_ns, kind="stable")
    latency_ns = calls.end_ns[waiter] - wake_ns
    return Wakes(
        waker[order],
        waiter[order],
        target[order],
        family[order],
        wake_ns[order],
        latency_ns[order],
        sum(part[3] for part in parts),
    )


_Part = tuple["Ints", "Ints", "NDArray[np.uint64]", int]


def _mutexes(rows: CallRows) -> _Part:
    # A wait on a condition variable gives its mutex away. That it waits for it again at its end
    # is a part of the wait on the condition: when it began to, nobody knows.
    waits = rows.of("mutex", ("acquire",))
    releases = rows.of("mutex", ("release",))
    conditions = rows.of("cond", ("wait",))
    target = waits.addresses("object")
    given = np.concatenate([releases.addresses("object"), conditions.addresses("mutex")])
    of_wait, of_post = numbered(target, given)
    posts = _posts([releases, conditions], of_post)
    made = _waits(waits, of_wait, waits.succeeded)
    post, wait = match_last(made, posts)
    rows_of_posts = np.concatenate([releases.row, conditions.row])
    return rows_of_posts[post], waits.row[wait], target[wait], int(made.ok.sum())


def _rwlocks(rows: CallRows) -> _Part:
    # Readers wait for writers only: other readers' releases in between let nobody in.
    waits = rows.of("rwlock", ("acquire", "share"))
    releases = rows.of("rwlock", ("release",))
    target = waits.addresses("object")
    of_wait, of_post = numbered(target, releases.addresses("object"))
    made, posts = _waits(waits, of_wait, waits.succeeded), _posts([releases], of_post)
    shares = waits.which(lambda f: f.role == "share")
    by_writer = np.flatnonzero(_ends_exclusive(rows, releases))
    readers, writers = np.flatnonzero(shares), np.flatnonzero(~shares)
    post_r, wait_r = match_last(made.take(readers), posts.take(by_writer))
    post_w, wait_w = match_last(made.take(writers), posts)
    post = np.concatenate([by_writer[post_r], post_w])
    wait = np.concatenate([readers[wait_r], writers[wait_w]])
    return releases.row[post], waits.row[wait], target[wait], int(made.ok.sum())


def _ends_exclusive(rows: CallRows, releases: CallRows) -> NDArray[np.bool_]:
    # By how the thread took the lock last; when the capture does not know, it may have been.
    takes = rows.of("rwlock", ("acquire", "share", "try", "tryshare"))
    takes = takes.take(takes.succeeded)
    of_take, of_release = numbered(takes.addresses("object"), releases.addresses("object"))
    take_tid, release_tid = numbered(takes.tid, releases.tid)
    threads = 1 + max(take_tid.max(initial=0), release_tid.max(initial=0))
    last = latest_before(
        of_take * threads + take_tid,
        takes.end_ns,
        of_release * threads + release_tid,
        releases.start_ns + 1,
    )
    shares = np.append(takes.which(lambda f: f.role in ("share", "tryshare")), False)
    return ~shares[last]


def _conditions(rows: CallRows, asleep: Sleepers) -> _Part:
    everybody = rows.which(lambda f: f.role == "wakeall")
    count = np.where(everybody, EVERYBODY, 1)
    is_wait = rows.which(lambda f: f.role == "wait")
    return _counted(rows, asleep, is_wait, count, keeps=False)


def _semaphores(rows: CallRows, asleep: Sleepers) -> _Part:
    is_post = rows.which(lambda f: f.role == "wake")
    is_try = rows.which(lambda f: f.role == "try")
    count = np.ones(len(rows), dtype=np.int64)
    return _counted(rows, asleep, ~is_post, count, keeps=True, instant=is_try)


def _futexes(rows: CallRows, asleep: Sleepers) -> _Part:
    rows = rows.take(rows.numbers("number") == SYS_FUTEX)
    operation = rows.numbers("operation") & _FUTEX_OPERATION
    rows = rows.take(np.isin(operation, (*_FUTEX_WAITS, *_FUTEX_WAKES)))
    operation = rows.numbers("operation") & _FUTEX_OPERATION
    count = np.maximum(rows.results(otherwise=0), 0)  # the kernel says how many it woke
    return _counted(rows, asleep, np.isin(operation, _FUTEX_WAITS), count, keeps=False)


def _barriers(rows: CallRows) -> _Part:
    target = rows.addresses("object")
    ok = rows.succeeded | (rows.is_finished & (rows.results(0) == _SERIAL_THREAD))
    made = _waits(rows, numbered(target)[0], ok)
    post, wait = match_barrier(made)
    return rows.row[post], rows.row[wait], target[wait], int(ok.sum())


def _counted(
    rows: CallRows,
    asleep: Sleepers,
    is_wait: NDArray[np.bool_],
    count: Ints,
    *,
    keeps: bool,
    instant: NDArray[np.bool_] | None = None,
) -> _Part:
    target = rows.addresses("object")
    number, of_sleeper = numbered(target, asleep.object)
    waits, posts = np.flatnonzero(is_wait), np.flatnonzero(~is_wait)
    made = _waits(rows.take(is_wait), number[waits], rows.succeeded[waits])
    if instant is not None:  # a try takes, but never waits
        made.start_ns[instant[waits]] = made.end_ns[instant[waits]]
    given = Posts(number[posts], rows.tid[posts], rows.start_ns[posts], count[posts])
    everyone = joined(made, unseen(asleep, of_sleeper, made))
    everyone.object[:] = stretches(asleep, of_sleeper, everyone.object, everyone.end_ns)
    given.object[:] = stretches(asleep, of_sleeper, given.object, given.ts_ns)
    post, wait = match_counted(everyone, given, keeps=keeps)
    recorded = wait < len(made)
    post, wait = posts[post[recorded]], waits[wait[recorded]]
    return rows.row[post], rows.row[wait], target[wait], int(made.ok.sum())


def _waits(rows: CallRows, number: Ints, ok: NDArray[np.bool_]) -> Waits:
    end_ns = np.where(rows.is_finished, rows.end_ns, NEVER_NS)
    return Waits(number, rows.tid, rows.start_ns, end_ns, ok)


def _posts(parts: Sequence[CallRows], number: Ints) -> Posts:
    tid = np.concatenate([part.tid for part in parts])
    start_ns = np.concatenate([part.start_ns for part in parts])
    return Posts(number, tid, start_ns, np.ones(len(number), dtype=np.int64))
