# SPDX-License-Identifier: Apache-2.0
"""Waits that had begun before the recording: threads that a look at proc found blocked.

Without them the first posts of a semaphore look as if nobody had waited for them. A look tells as
well that nothing was kept at that moment where a thread was blocked.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from textpoke.group_math import earliest_after, latest_before, numbered
from textpoke.wake_rules import NEVER_NS, Waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from textpoke.calls import Calls
    from textpoke.decode import Clock

    Ints = NDArray[np.int64]

_MOST_TICKS = 1 << 64
_MOST_ADDRESS = 1 << 64
_MOST_DIGITS = 10  # of a thread id


@dataclass(frozen=True, slots=True)
class Look:
    """What proc/PID/task/*/syscall showed.

    Attributes:
        ts_ns: When the look began, in nanoseconds since the capture's first clock point.
        threads: Thread id to the address that it was blocked on.
    """

    ts_ns: int
    threads: dict[int, int]


@dataclass(frozen=True, slots=True)
class Sleepers:
    """Threads that were found blocked, a row for each time.

    Attributes:
        tid: int64.
        object: uint64, the address that the thread was blocked on.
        ts_ns: int64, when the look began.
        until_ns: int64, by then it was known to be over, or another look began; else `NEVER_NS`.
        ok: bool, it was over because the thread was heard of again.
    """

    tid: Ints
    object: NDArray[np.uint64]
    ts_ns: Ints
    until_ns: Ints
    ok: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.tid)


def looks(blocks: Iterable[Mapping[str, object]], clock: Clock) -> list[Look]:
    """The looks in a capture's JSON blocks, by time; what has another shape is passed over.

    Args:
        blocks: META, SITES and END. Field `waiting` of each is
            `{"tsc": ticks, "threads": {"101": address}}`; those of one time are one look.
        clock: Of the same capture.
    """
    found: dict[int, dict[int, int]] = {}
    for block in blocks:
        look = block.get("waiting")
        if not isinstance(look, dict):
            continue
        tsc, threads = look.get("tsc"), look.get("threads")
        if type(tsc) is int and 0 <= tsc < _MOST_TICKS and isinstance(threads, dict):
            ts_ns = int(clock.ns(np.array([tsc], np.uint64))[0])
            if 0 <= ts_ns < NEVER_NS:
                found.setdefault(ts_ns, {}).update(_threads(threads))
    return [Look(ts_ns, found[ts_ns]) for ts_ns in sorted(found)]


def _threads(threads: Mapping[object, object]) -> Iterator[tuple[int, int]]:
    for tid, address in threads.items():
        if not (isinstance(tid, str) and tid.isascii() and tid.isdecimal()):
            continue
        if len(tid) <= _MOST_DIGITS and type(address) is int and 0 <= address < _MOST_ADDRESS:
            yield int(tid), address


def sleepers(calls: Calls, looks: Sequence[Look]) -> Sleepers:
    """What looks, in order of time, found; and until when it may have lasted."""
    rows = [
        (tid, look.ts_ns, following.ts_ns)
        for look, following in pairwise([*looks, Look(NEVER_NS, {})])
        for tid in look.threads
    ]
    tid, ts_ns, next_ns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    address = [address for look in looks for address in look.threads.values()]
    heard_ns = _first_events(calls, tid, ts_ns)
    until_ns = np.minimum(heard_ns, next_ns)
    return Sleepers(tid, np.array(address, dtype=np.uint64), ts_ns, until_ns, heard_ns < next_ns)


def _first_events(calls: Calls, tid: Ints, after_ns: Ints) -> Ints:
    # A call that began, or an older one that returned.
    rows = np.flatnonzero(np.isin(calls.tid, tid))
    of_event = np.tile(calls.tid[rows].astype(np.int64), 2)
    when = np.concatenate([calls.start_ns[rows], calls.end_ns[rows]])
    first = earliest_after(of_event, when, tid, after_ns)
    return np.append(when, NEVER_NS)[first]  # -1 finds the last


def unseen(found: Sleepers, number: Ints, waits: Waits) -> Waits:
    """Waits of sleepers that no call tells of.

    Args:
        found: The sleepers.
        number: Their objects, numbered as those of the waits.
        waits: What calls tell.
    """
    of_sleeper, of_wait = numbered(found.tid, waits.tid)
    threads = len(found) + len(waits) + 1
    last = latest_before(
        waits.object * threads + of_wait,
        waits.start_ns,
        number * threads + of_sleeper,
        found.ts_ns + 1,
    )
    over_ns = np.append(waits.end_ns, -1)[last]  # -1 finds the last
    rows = np.flatnonzero(over_ns < found.ts_ns)
    return Waits(number, found.tid, found.ts_ns, found.until_ns, found.ok).take(rows)


def stretches(found: Sleepers, number: Ints, of_object: Ints, when_ns: Ints) -> Ints:
    """Objects as other numbers: another one for each stretch of time between looks.

    Nothing was kept of an object on which a thread was blocked: what was counted up to that moment
    does not matter any more.

    Args:
        found: The sleepers.
        number: Their objects, numbered as `of_object`.
        of_object: Some objects.
        when_ns: A moment for each.
    """
    last = latest_before(number, found.ts_ns, of_object, when_ns)
    return of_object * (len(found) + 1) + last + 1
