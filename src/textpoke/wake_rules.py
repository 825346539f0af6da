# SPDX-License-Identifier: Apache-2.0
"""Which wake ended which wait: three rules, over columns; `docs/tracing.md` has their reasons.

Waits that overlap no other wait on their object, nearly all, are matched in bulk; the others walk
through a small model of the object, event by event.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Self

import numpy as np

from textpoke.group_math import earliest_after, group_maxima, group_minima, latest_before, levels

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Pairs = tuple[Ints, Ints]
    """Indexes of wakes and of the waits that they ended."""

NEVER_NS = np.iinfo(np.int64).max >> 2
"""End of a wait that did not end."""
EVERYBODY = 1 << 30
_SLEPT_NS = 10_000  # longer than a call takes that finds what it waits for
_ENOUGH_SLEEPS = 8
_FEW_TAKES = 4  # for each sleep

_ENDS, _WAKES, _BEGINS = range(3)  # at one moment, in this order


@dataclass(frozen=True, slots=True)
class Waits:
    """Calls that wait, a row each: on what, who, from when until when, with what outcome.

    Attributes:
        object: int64 (any number for an object, the same in `Posts`).
        tid: int64.
        start_ns: int64.
        end_ns: int64, `NEVER_NS` for calls that did not return.
        ok: bool, what was waited for has come.
    """

    object: Ints
    tid: Ints
    start_ns: Ints
    end_ns: Ints
    ok: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.object)

    def take(self, rows: Ints | NDArray[np.bool_]) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, column.name)[rows] for column in fields(self)))


def joined(first: Waits, second: Waits) -> Waits:
    """The ones behind the others."""
    names = [column.name for column in fields(Waits)]
    return Waits(*(np.concatenate([getattr(w, name) for w in (first, second)]) for name in names))


@dataclass(frozen=True, slots=True)
class Posts:
    """Calls that wake or release, a row each: on what, who, when, how many waiters at most."""

    object: Ints
    tid: Ints
    ts_ns: Ints
    count: Ints

    def __len__(self) -> int:
        return len(self.object)

    def take(self, rows: Ints) -> Self:
        """Some of them."""
        return type(self)(*(getattr(self, column.name)[rows] for column in fields(self)))


def match_last(waits: Waits, posts: Posts) -> Pairs:
    """Of what one thread has at a time: the last release before the waiter had it.

    Any later release would need another owner in between. It counts when the wait had begun
    before it, and when it is another thread's.
    """
    last = latest_before(posts.object, posts.ts_ns, waits.object, waits.end_ns)
    wait = np.flatnonzero(waits.ok & (last >= 0))
    post = last[wait]
    waited = posts.ts_ns[post] > waits.start_ns[wait]
    real = waited & (posts.tid[post] != waits.tid[wait])
    return post[real], wait[real]


def match_counted(waits: Waits, posts: Posts, *, keeps: bool) -> Pairs:
    """Condition variables and futexes; with `keeps` semaphores, where a wake may be kept for later.

    A wake that finds waiters wakes as many of them as it may and as are not about to be woken
    already; these wakes are handed, oldest first, to those waiters in the order of their returns.
    """
    able = np.flatnonzero(posts.count > 0)
    able = able[np.lexsort((posts.ts_ns[able], posts.object[able]))]
    given = posts.take(able)
    cluster = _clusters(waits)
    alone = np.bincount(cluster, minlength=1)[cluster] == 1
    stored, untaken = _stored(waits, posts) if keeps else np.zeros((2, len(waits)), np.int64)
    is_free = alone & waits.ok & (stored <= untaken)
    pairs = [_match_alone(waits, given, np.flatnonzero(is_free))]
    for members in _groups(cluster, ~alone):
        first = members[np.argmin(waits.start_ns[members])]
        model = _Model(keeps=keeps, stored=int(stored[first]))
        pairs.append(model.run(waits, given, members))
    post, wait = _joined(pairs)
    return able[post], wait


def match_barrier(waits: Waits) -> Pairs:
    """Barriers: all that wait are woken by the last thread to come; posts are waits here.

    Who comes before the first of a round has left belongs to the round; who comes later has left
    it already, or belongs to the next one.
    """
    cluster = _clusters(waits)
    together = np.bincount(cluster, minlength=1)[cluster] > 1
    return _joined([_match_rounds(waits, members) for members in _groups(cluster, together)])


def _match_alone(waits: Waits, posts: Posts, rows: Ints) -> Pairs:
    first = earliest_after(posts.object, posts.ts_ns, waits.object[rows], waits.start_ns[rows])
    rows, first = rows[first >= 0], first[first >= 0]
    in_time = posts.ts_ns[first] < waits.end_ns[rows]
    return first[in_time], rows[in_time]


def _near(waits: Waits, posts: Posts, members: Ints) -> range:
    # The wakes while any of the members waits, of wakes in order of object and time.
    target = waits.object[members[0]]
    low, high = np.searchsorted(posts.object, [target, target + 1]).tolist()
    span_ns = [int(waits.start_ns[members].min()) + 1, int(waits.end_ns[members].max())]
    first, last = np.searchsorted(posts.ts_ns[low:high], span_ns).tolist()
    return range(low + first, low + last)


def _clusters(waits: Waits) -> Ints:
    # Numbers that waits share which overlap, directly or through others.
    order = np.lexsort((waits.start_ns, waits.object))
    target, start, end = waits.object[order], waits.start_ns[order], waits.end_ns[order]
    begins = np.ones(len(order), dtype=bool)
    latest = group_maxima(target, end)
    begins[1:] = (target[1:] != target[:-1]) | (start[1:] > latest[:-1])
    cluster = np.empty(len(order), dtype=np.int64)
    cluster[order] = np.cumsum(begins) - 1
    return cluster


def _groups(cluster: Ints, wanted: NDArray[np.bool_]) -> Iterator[Ints]:
    rows = np.flatnonzero(wanted)
    rows = rows[np.argsort(cluster[rows], kind="stable")]
    if len(rows):
        yield from np.split(rows, np.flatnonzero(np.diff(cluster[rows])) + 1)


def _stored(waits: Waits, posts: Posts) -> Pairs:
    # How many wakes a semaphore kept when each wait began, as far as the capture knows; and how
    # many of them were taken unseen, where waits tell, if they were alone.
    taken = np.flatnonzero(waits.ok)
    target = np.concatenate([posts.object, waits.object[taken]])
    when = np.concatenate([posts.ts_ns, waits.end_ns[taken]])
    step = np.repeat([1, -1], [len(posts), len(taken)])
    order = np.lexsort((step, when, target))
    target, when = target[order], when[order]
    height = levels(target, step[order])
    untaken = _never_taken(target, height, step[order])
    untaken = np.where(_sleeps(waits, posts, target), untaken, 0)
    last = latest_before(target, when, waits.object, waits.start_ns + 1)
    return np.append(height, 0)[last], np.append(untaken, 0)[last]  # -1 finds the last


def _never_taken(target: Ints, height: Ints, step: Ints) -> Ints:
    # How many of those that were kept at each moment are still there at the last post: of takes
    # behind it nobody knows whether they had a post, since switching off may have come between.
    is_before_last = group_maxima(target[::-1], step[::-1])[::-1] > 0
    known = np.where(is_before_last, height, NEVER_NS)
    return np.minimum(group_minima(target[::-1], known[::-1])[::-1], height)


def _sleeps(waits: Waits, posts: Posts, target: Ints) -> NDArray[np.bool_]:
    # Whether many waits on these objects slept until a post came. Nobody sleeps while something is
    # kept: what nobody takes from such an object was taken unseen, by a wait of before the capture.
    took = np.flatnonzero(waits.ok)
    object_, start_ns, end_ns = waits.object[took], waits.start_ns[took], waits.end_ns[took]
    post = earliest_after(posts.object, posts.ts_ns, object_, start_ns)
    slept = np.append(posts.ts_ns, NEVER_NS)[post] < end_ns  # -1 finds the last
    slept &= end_ns - start_ns > _SLEPT_NS
    known, of_take = np.unique(object_, return_inverse=True)
    sleeps, takes = np.bincount(of_take[slept], minlength=len(known)), np.bincount(of_take)
    return np.isin(target, known[(sleeps >= _ENOUGH_SLEEPS) & (_FEW_TAKES * sleeps > takes)])


@dataclass(slots=True)
class _Model:
    # One object: who waits, and wakes that have been given out but were not yet seen to arrive.
    keeps: bool
    stored: int
    waiting: dict[int, int] = field(default_factory=dict)
    given: deque[tuple[int, int]] = field(default_factory=deque)
    pairs: list[tuple[int, int]] = field(default_factory=list)

    def run(self, waits: Waits, posts: Posts, members: Ints) -> Pairs:
        events = [
            *((int(waits.start_ns[i]), _BEGINS, int(i)) for i in members),
            *((int(waits.end_ns[i]), _ENDS, int(i)) for i in members),
            *((int(posts.ts_ns[i]), _WAKES, i) for i in _near(waits, posts, members)),
        ]
        for ts_ns, kind, index in sorted(events):
            if kind == _WAKES:
                self.wake(ts_ns, index, int(posts.count[index]))
            elif kind == _BEGINS:
                if waits.end_ns[index] > ts_ns:
                    self.waiting[index] = ts_ns
            elif ts_ns < NEVER_NS:
                self.end(index, ok=bool(waits.ok[index]))
        columns = np.array(self.pairs, dtype=np.int64).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]

    def wake(self, ts_ns: int, index: int, count: int) -> None:
        asleep = 0 if self.stored else len(self.waiting) - len(self.given)
        self.given.extend([(ts_ns, index)] * min(count, asleep))
        if self.keeps and asleep <= 0:
            self.stored += 1

    def end(self, index: int, *, ok: bool) -> None:
        begun_ns = self.waiting.pop(index, NEVER_NS)
        if ok:
            wake = next((wake for wake in self.given if wake[0] > begun_ns), None)
            if wake:
                self.given.remove(wake)
                self.pairs.append((wake[1], index))
            elif self.stored:
                self.stored -= 1
            elif self.keeps and self.given:
                self.given.popleft()  # taken from under the one that was woken, who waits on
        while len(self.given) > len(self.waiting):
            self.given.pop()
            self.stored += self.keeps


def _match_rounds(waits: Waits, members: Ints) -> Pairs:
    events = [
        *((int(waits.start_ns[i]), _BEGINS, int(i)) for i in members),
        *((int(waits.end_ns[i]), _ENDS, int(i)) for i in members),
    ]
    rounds: list[list[int]] = [[]]
    round_of: dict[int, int] = {}
    is_over = False
    for _, kind, index in sorted(events):
        if kind == _ENDS:
            is_over |= round_of.get(index) == len(rounds) - 1
            continue
        if is_over:
            rounds.append([])
            is_over = False
        rounds[-1].append(index)
        round_of[index] = len(rounds) - 1
    pairs = [(came[-1], i) for came in rounds for i in came[:-1] if waits.ok[i]]
    columns = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _joined(pairs: list[Pairs]) -> Pairs:
    none = np.zeros(0, dtype=np.int64)
    return (
        np.concatenate([none, *(pair[0] for pair in pairs)]),
        np.concatenate([none, *(pair[1] for pair in pairs)]),
    )
