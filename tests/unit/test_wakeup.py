# SPDX-License-Identifier: Apache-2.0
"""Which wake ended which wait, and how long that took."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import captures
import numpy as np
import pytest
from call_tables import Call, call, recipe, table
from hypothesis import given, settings
from hypothesis import strategies as st

from textpoke import wake_rules
from textpoke.call_rows import open_calls
from textpoke.capture import Capture
from textpoke.decode import Clock
from textpoke.unseen_waits import Look, looks
from textpoke.wake_rules import Posts, Waits
from textpoke.wakeup import FAMILIES, wakes

if TYPE_CHECKING:
    from pathlib import Path

X, Y, MUTEX = 0x1000, 0x2000, 0x3000
FUTEX_WAIT, FUTEX_WAKE, PRIVATE = 0, 1, 128


def found(calls: list[Call], *looks: Look) -> list[tuple[str, int, int, int, int]]:
    """Family, waker, waiter, when, latency of each wake."""
    made, functions = table("wakeup_rt", calls)
    woken = wakes(made, functions, looks)
    return [
        (FAMILIES[family], int(made.tid[waker]), int(made.tid[waiter]), ts_ns, latency_ns)
        for family, waker, waiter, ts_ns, latency_ns in zip(
            woken.family.tolist(),
            woken.waker.tolist(),
            woken.waiter.tolist(),
            woken.wake_ns.tolist(),
            woken.latency_ns.tolist(),
            strict=True,
        )
    ]


def wait(tid: int, start: int, end: int | None, result: int = 0, at: int = X) -> Call:
    return call(tid, "pthread_cond_wait", start, end, result, object=at, mutex=MUTEX)


def signal(tid: int, start: int, at: int = X) -> Call:
    return call(tid, "pthread_cond_signal", start, start + 2, object=at)


def sem_wait(tid: int, start: int, end: int | None, result: int = 0) -> Call:
    return call(tid, "sem_wait", start, end, result, object=X)


def post(tid: int, start: int) -> Call:
    return call(tid, "sem_post", start, start + 2, object=X)


def barrier(tid: int, start: int, end: int, result: int = 0) -> Call:
    return call(tid, "pthread_barrier_wait", start, end, result, object=X)


def futex(tid: int, start: int, end: int, operation: int, result: int = 0) -> Call:
    words = {"number": 202, "object": X, "operation": operation}
    return call(tid, "syscall", start, end, result, **words)


def test_from_the_entry_of_signal_to_the_return_of_wait() -> None:
    assert found([wait(1, 10, 100), signal(2, 70)]) == [("cond", 2, 1, 70, 30)]


def test_other_objects_and_other_times_do_not_count() -> None:
    assert found([wait(1, 10, 100), signal(2, 70, Y), signal(2, 5), signal(2, 100)]) == []


def test_of_two_signals_to_one_waiter_the_first_woke_it() -> None:
    assert found([wait(1, 10, 100), signal(2, 50), signal(2, 60)]) == [("cond", 2, 1, 50, 50)]


def test_a_broadcast_wakes_all_that_wait() -> None:
    calls = [
        wait(1, 10, 100),
        wait(2, 20, 120),
        wait(3, 80, 200),
        call(4, "pthread_cond_broadcast", 70, 75, object=X),
    ]
    assert found(calls) == [("cond", 4, 1, 70, 30), ("cond", 4, 2, 70, 50)]


def test_signals_are_handed_out_in_the_order_of_returns() -> None:
    calls = [wait(1, 10, 110), wait(2, 20, 100), signal(3, 50), signal(3, 60)]
    assert found(calls) == [("cond", 3, 2, 50, 50), ("cond", 3, 1, 60, 50)]


def test_a_signal_too_many_wakes_nobody_later() -> None:
    calls = [wait(1, 10, 100), wait(2, 20, 300), *(signal(3, 50), signal(3, 60), signal(3, 70))]
    assert found([*calls, wait(3, 80, 400)]) == [("cond", 3, 1, 50, 50), ("cond", 3, 2, 60, 240)]


def test_a_wait_that_timed_out_was_not_woken() -> None:
    calls = [
        call(1, "pthread_cond_timedwait", 10, 100, 110, object=X, mutex=MUTEX),
        signal(2, 90),
    ]
    assert found(calls) == []
    assert found([*calls, wait(3, 20, 130)]) == [("cond", 2, 3, 90, 40)]


def test_a_wait_that_never_returned_has_no_latency() -> None:
    assert found([wait(1, 10, None), signal(2, 50), wait(3, 20, 70)]) == [("cond", 2, 3, 50, 20)]


def test_a_spurious_return_is_no_wake() -> None:
    assert found([wait(1, 10, 100), wait(2, 20, 90), signal(3, 95)]) == [("cond", 3, 1, 95, 5)]


def test_a_mutex_is_handed_over_by_its_last_release() -> None:
    calls = [
        call(1, "pthread_mutex_lock", 0, 5, object=MUTEX),
        call(2, "pthread_mutex_lock", 10, 100, object=MUTEX),
        call(1, "pthread_mutex_unlock", 60, 70, object=MUTEX),
        call(3, "pthread_mutex_lock", 61, 62, object=MUTEX),  # faster than the one who waits
        call(3, "pthread_mutex_unlock", 80, 81, object=MUTEX),
    ]
    # The third did not wait before the release at 60, so the second has it from the third.
    assert found(calls) == [("mutex", 3, 2, 80, 20)]


def test_a_free_mutex_wakes_nobody() -> None:
    calls = [
        call(1, "pthread_mutex_unlock", 0, 5, object=MUTEX),
        call(2, "pthread_mutex_lock", 10, 12, object=MUTEX),
        call(2, "pthread_mutex_lock", 20, 50, 35, object=MUTEX),  # EDEADLK
        call(1, "pthread_mutex_unlock", 30, 35, object=MUTEX),
    ]
    assert found(calls) == []


def test_a_wait_on_a_condition_hands_its_mutex_over() -> None:
    calls = [wait(1, 30, None), call(2, "pthread_mutex_lock", 10, 40, object=MUTEX)]
    assert found(calls) == [("mutex", 1, 2, 30, 10)]


def test_readers_are_woken_by_writers_only() -> None:
    calls = [
        call(1, "pthread_rwlock_wrlock", 0, 5, object=X),
        call(2, "pthread_rwlock_rdlock", 10, 100, object=X),
        call(3, "pthread_rwlock_rdlock", 20, 70, object=X),
        call(1, "pthread_rwlock_unlock", 60, 65, object=X),
        call(3, "pthread_rwlock_unlock", 80, 81, object=X),
        call(4, "pthread_rwlock_wrlock", 90, 150, object=X),
        call(2, "pthread_rwlock_unlock", 120, 121, object=X),
    ]
    assert found(calls) == [
        ("rwlock", 1, 2, 60, 40),
        ("rwlock", 1, 3, 60, 10),
        ("rwlock", 2, 4, 120, 30),
    ]


def test_a_semaphores_post_wakes_who_waits() -> None:
    assert found([sem_wait(1, 10, 100), post(2, 60)]) == [("sem", 2, 1, 60, 40)]


def test_what_was_posted_before_was_not_waited_for() -> None:
    assert found([post(2, 5), sem_wait(1, 10, 100), post(2, 60)]) == []


def test_a_post_may_be_taken_by_somebody_who_came_later() -> None:
    calls = [
        sem_wait(1, 10, 200),
        post(2, 50),
        call(3, "sem_trywait", 60, 61, object=X),
        post(2, 150),
    ]
    assert found(calls) == [("sem", 2, 1, 150, 50)]


def test_an_interrupted_wait_was_not_woken() -> None:
    assert found([sem_wait(1, 10, 100, -1), post(2, 60)]) == []
    assert found([sem_wait(1, 10, 100, -1), post(2, 60), sem_wait(3, 110, 120)]) == []


def test_the_first_post_goes_to_the_one_that_waited_already() -> None:
    calls = [post(2, 50), sem_wait(1, 60, 105), post(2, 100), sem_wait(1, 110, 208), post(2, 200)]
    assert found(calls) == []  # the first one looks as if it had been kept
    assert found(calls, Look(10, {1: X})) == [("sem", 2, 1, 100, 5), ("sem", 2, 1, 200, 8)]


def test_three_workers_that_waited_already_get_a_post_each() -> None:
    posts = [post(9, 100 * i) for i in range(1, 8)]
    # Each returns 10 after its post, in turn, and waits again.
    waits = [sem_wait(1 + i % 3, 100 * i + 111, 100 * i + 410) for i in range(4)]
    in_turn = [("sem", 9, 1 + i % 3, 100 * i + 400, 10) for i in range(4)]
    assert found([*posts, *waits], Look(10, {1: X, 2: X, 3: X})) == in_turn
    assert found([*posts, *waits]) != in_turn


def test_ping_pong_begun_before() -> None:
    def round_at(ts: int) -> list[Call]:
        there, back = call(1, "sem_post", ts, ts + 2, object=X), sem_wait(2, ts + 60, ts + 105)
        answer = call(2, "sem_post", ts + 50, ts + 52, object=Y)
        return [there, back, answer, call(1, "sem_wait", ts + 3, ts + 57, object=Y)]

    calls = [one for ts in (100, 200, 300) for one in round_at(ts)]
    there = [("sem", 1, 2, ts, 5) for ts in (200, 300)]
    back = [("sem", 2, 1, ts + 50, 7) for ts in (100, 200, 300)]
    assert found(calls, Look(10, {2: X})) == sorted(there + back, key=lambda wake: wake[3])


def test_one_that_waited_already_and_is_never_heard_of_takes_nobodys_wake() -> None:
    calls = [sem_wait(1, 20, 105), post(9, 100), sem_wait(1, 110, 205), post(9, 200)]
    woken = [("sem", 9, 1, 100, 5), ("sem", 9, 1, 200, 5)]
    assert found(calls, Look(10, {2: X})) == woken
    # It took the first post, or still waits: nobody knows, and the others' wakes are the same.
    assert found([post(9, 15), *calls], Look(10, {2: X})) == woken


def test_one_whose_wait_was_recorded_waits_once() -> None:
    calls = [sem_wait(1, 10, 105), post(9, 100), sem_wait(2, 30, 205), post(9, 200)]
    woken = [("sem", 9, 1, 100, 5), ("sem", 9, 2, 200, 5)]
    assert found(calls, Look(20, {1: X})) == found(calls) == woken
    two_posts = [sem_wait(1, 10, 105), post(9, 50), post(9, 100)]
    kept = [*two_posts, sem_wait(1, 110, 205), post(9, 200)]  # it takes the one of 100
    assert found(kept, Look(20, {1: X})) == [("sem", 9, 1, 50, 55)]
    never_back = [sem_wait(1, 10, None), sem_wait(2, 30, 205), post(9, 200)]
    assert found(never_back, Look(20, {1: X})) == [("sem", 9, 2, 200, 5)]


def test_nothing_was_kept_where_a_thread_was_blocked() -> None:
    """Somebody took the first post unseen, and was back in its wait when proc was looked at."""
    calls = [post(9, 10), sem_wait(1, 20, 105), post(9, 100)]
    assert found(calls) == []
    assert found(calls, Look(30, {1: X})) == [("sem", 9, 1, 100, 5)]
    assert found(calls, Look(30, {1: Y})) == []


def test_a_return_tells_that_a_wait_was_over() -> None:
    """What it waited in was recorded by another tracer, before this one was switched on."""
    serve = call(1, "serve", 1, 60)
    later = [sem_wait(2, 20, 205), post(9, 50), post(9, 200)]
    assert found([serve, *later], Look(10, {1: X})) == [("sem", 9, 2, 200, 5)]


def test_of_two_looks_each_is_true_from_then_on() -> None:
    calls = [post(9, 100), sem_wait(1, 110, 150), post(9, 145), post(9, 300), sem_wait(1, 310, 405)]
    twice = Look(10, {1: X}), Look(200, {1: X})
    assert found([*calls, post(9, 400)], *twice) == [
        ("sem", 9, 1, 145, 5),
        ("sem", 9, 1, 400, 5),
    ]


def test_what_sleepers_never_take_was_taken_unseen() -> None:
    """Nobody noted who took the first post: it was awake when proc was looked at."""
    us = 1000
    posts = [post(9, 100 * us * i) for i in range(10)]
    waits = [sem_wait(1, 100 * us * i + 50 * us, 100 * us * i + 105 * us) for i in range(9)]
    in_turn = [("sem", 9, 1, 100 * us * i, 5 * us) for i in range(1, 10)]
    assert found([*posts, *waits]) == in_turn
    # The last post came while the recording was switched off.
    assert found([*posts, *waits, sem_wait(1, 950 * us, 1005 * us)]) == in_turn
    assert found([*posts[:8], *waits[:7]]) == []  # too few to tell


def test_what_nobody_sleeps_for_may_stay_kept() -> None:
    us = 1000
    posts = [post(9, 100 * us * i) for i in range(70)]
    quick = [sem_wait(1, 100 * us * i - us, 100 * us * i + us) for i in range(1, 50)]
    held_up = [sem_wait(1, 100 * us * i - 50 * us, 100 * us * i + us) for i in range(50, 60)]
    assert found([*posts, *quick, *held_up]) == []


def test_a_futex_that_was_waited_for_already() -> None:
    calls = [
        futex(9, 50, 51, FUTEX_WAKE, 1),
        futex(2, 20, 105, FUTEX_WAIT),
        futex(1, 60, 205, FUTEX_WAIT),
        futex(9, 100, 101, FUTEX_WAKE, 1),
        futex(9, 200, 201, FUTEX_WAKE, 1),
    ]
    right = [("futex", 9, 2, 100, 5), ("futex", 9, 1, 200, 5)]
    assert found(calls) != right
    assert found(calls, Look(10, {1: X})) == right


def test_looks_of_another_shape_are_passed_over(tmp_path: Path) -> None:
    with Capture(captures.write(tmp_path / "x", recipe("wakeup_rt", []))) as capture:
        clock = Clock(capture)
        tsc = capture.meta.clock.tsc
    threads = {"7": X, "x": 1, "8": -1, "9": 1 << 64, "1" * 11: 1, "10": True}
    blocks: list[dict[str, object]] = [
        {"waiting": {"tsc": tsc + 3000, "threads": {}}},
        {"waiting": {"tsc": tsc, "threads": threads}},
        {"waiting": {"tsc": tsc - 3000, "threads": threads}},  # before the recording
        {"waiting": {"tsc": 1 << 64, "threads": threads}},
        {"waiting": {"tsc": tsc, "threads": [7]}},
        {"waiting": [7]},
        {"waiting": {"tsc": tsc, "threads": {"6": Y}}},  # of the same look
        {},
    ]
    assert looks(blocks, clock) == [Look(0, {7: X, 6: Y}), Look(1000, {})]


STEPS = st.lists(st.booleans(), min_size=4, max_size=40)


def semaphore_in_use(workers: int, steps: list[bool], work: int) -> list[Call]:
    """Workers that wait in turn; at each true step a post, taken 3 later, then work for a while."""
    begun = dict.fromkeys(range(1, workers + 1), 0)
    asleep, busy = deque(begun), deque[tuple[int, int]]()
    calls, kept = [], 0
    for step, is_post in enumerate(steps, start=1):
        now = 20 * step
        while busy and busy[0][1] < now:
            tid, begun[tid] = busy.popleft()
            asleep.append(tid)
            if kept:  # it finds one that was kept, and does not sleep
                kept -= 1
                calls.append(sem_wait(asleep.pop(), begun[tid], begun[tid] + 1))
                calls.append(call(tid, "serve", begun[tid] + 2, begun[tid] + 20 * work))
                busy.append((tid, begun[tid] + 20 * work + 1))
        if is_post:
            calls.append(post(99, now))
            kept += not asleep
            if asleep:
                tid = asleep.popleft()
                calls.append(sem_wait(tid, begun[tid], now + 3))
                calls.append(call(tid, "serve", now + 4, now + 20 * work + 4))
                busy.append((tid, now + 20 * work + 5))
    return [*calls, *(sem_wait(tid, begun[tid], None) for tid in asleep)]


@settings(deadline=None)
@given(st.integers(1, 4), STEPS, st.integers(1, 5), st.integers(1, 40))
def test_a_recording_that_begins_in_the_middle_misses_nothing_from_there_on(
    workers: int, steps: list[bool], work: int, first_step: int
) -> None:
    calls = semaphore_in_use(workers, steps, work)
    began = 20 * first_step - 5
    waits = [c for c in calls if c.name == "sem_wait"]
    waiting = {c.tid: X for c in waits if c.start < began and (c.end or began + 1) > began}
    seen = {(c.tid, c.end) for c in waits if c.start >= began}
    wanted = [w for w in found(calls) if (w[2], w[3] + w[4]) in seen]
    assert found([c for c in calls if c.start >= began], Look(began, waiting)) == wanted


def test_the_last_to_come_opens_the_barrier() -> None:
    calls = [barrier(1, 10, 100), barrier(2, 20, 110), barrier(3, 90, 95, -1)]
    assert found(calls) == [("barrier", 3, 1, 90, 10), ("barrier", 3, 2, 90, 20)]


def test_a_thread_that_comes_again_is_in_the_next_round() -> None:
    calls = [
        barrier(1, 10, 100),
        barrier(2, 20, 25, -1),
        barrier(2, 60, 140),
        barrier(1, 130, 135, -1),
    ]
    assert found(calls) == [("barrier", 2, 1, 20, 80), ("barrier", 1, 2, 130, 10)]


def test_futexes_by_the_function_syscall() -> None:
    calls = [
        futex(1, 10, 100, FUTEX_WAIT | PRIVATE),
        futex(2, 20, 120, FUTEX_WAIT),
        futex(3, 30, 130, FUTEX_WAIT, -1),
        futex(4, 80, 85, FUTEX_WAKE | PRIVATE, 2),
        futex(4, 5, 6, FUTEX_WAKE, 0),
        call(4, "syscall", 90, 91, 0, number=0, object=X, operation=FUTEX_WAKE),
    ]
    assert found(calls) == [("futex", 4, 1, 80, 20), ("futex", 4, 2, 80, 40)]


def test_calls_that_a_libc_makes_within_are_one_wait() -> None:
    calls = [
        sem_wait(1, 10, 100),
        call(1, "sem_timedwait", 11, 99, object=X),
        call(1, "sem_trywait", 90, 91, object=X),
        post(2, 60),
    ]
    assert found(calls) == [("sem", 2, 1, 60, 40)]


def test_a_handler_that_posts_while_its_thread_waits_is_heard() -> None:
    handler = call(1, "sem_post", 50, 52, object=Y)
    other = call(2, "sem_wait", 10, 60, object=Y)
    assert found([sem_wait(1, 5, None), handler, other]) == [("sem", 1, 2, 50, 10)]


def test_the_longest_and_the_calls_around_it() -> None:
    calls = [
        call(1, "serve", 0, 200),
        call(1, "take", 5, 150),
        wait(1, 10, 100),
        signal(2, 70),
        wait(3, 300, 350),
        signal(2, 340),
    ]
    made, functions = table("wakeup_rt", calls)
    woken = wakes(made, functions)
    assert woken.longest == 0
    names = [made.name(made.site[row]) for row in open_calls(made, woken.waiter[0])]
    assert names == [f"libc.so.6!{name}" for name in ("serve", "take", "pthread_cond_wait")]
    assert wakes(*table("wakeup_rt", [])).longest is None
    assert woken.waits == 2


EVENTS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 9), st.booleans(), st.integers(0, 3)),
    max_size=24,
)


@settings(deadline=None)
@pytest.mark.parametrize("keeps", [False, True])
@given(events=EVENTS)
def test_waits_alone_are_matched_as_the_model_matches_them(
    keeps: bool, events: list[tuple[int, int, bool, int]]
) -> None:
    """The bulk way and the walk through the model agree where both can be used."""
    now, rows, posts = 0, [], []
    for gap, length, ok, when in events:
        start = now + gap + 1
        rows.append((1, 1, start, start + length, ok))
        if when:
            posts.append((1, 2, start + when - 2, 1))
        now = start + length
    waits = Waits(*(np.array(column) for column in zip(*rows, strict=True))) if rows else NO_WAITS
    given_posts = (
        Posts(*(np.array(column) for column in zip(*posts, strict=True))) if posts else NO_POSTS
    )
    bulk = wake_rules.match_counted(waits, given_posts, keeps=keeps)
    model = wake_rules._Model(keeps=keeps, stored=0)
    order = np.argsort(given_posts.ts_ns, kind="stable")
    wake, which = [], []
    if len(waits):
        everything = _all_in_one(model, waits, given_posts, order)
        wake, which = everything
    assert sorted(zip(bulk[0].tolist(), bulk[1].tolist(), strict=True)) == sorted(
        zip(wake, which, strict=True)
    )


NO_WAITS = Waits(*(np.zeros(0, dtype=np.int64) for _ in range(4)), np.zeros(0, dtype=bool))
NO_POSTS = Posts(*(np.zeros(0, dtype=np.int64) for _ in range(4)))


def _all_in_one(model, waits, posts, order):
    events = [
        *((int(waits.start_ns[i]), wake_rules._BEGINS, i) for i in range(len(waits))),
        *((int(waits.end_ns[i]), wake_rules._ENDS, i) for i in range(len(waits))),
        *((int(posts.ts_ns[i]), wake_rules._WAKES, int(i)) for i in order),
    ]
    for ts_ns, kind, index in sorted(events):
        if kind == wake_rules._WAKES:
            model.wake(ts_ns, index, 1)
        elif kind == wake_rules._BEGINS:
            model.waiting[index] = ts_ns
        else:
            model.end(index, ok=bool(waits.ok[index]))
    pairs = model.pairs
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
