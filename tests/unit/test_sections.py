# SPDX-License-Identifier: Apache-2.0
"""Critical sections out of calls: what holds, since when, until when."""

from __future__ import annotations

import pytest
from call_tables import Call, call, table
from hypothesis import given, settings
from hypothesis import strategies as st

from textpoke.sections import KINDS, attempts, sections

LOCK, OTHER_LOCK = 0x1000, 0x2000
BLOCK, UNBLOCK, SETMASK = range(3)


def lock(tid: int, start: int, end: int | None, at: int = LOCK, result: int = 0) -> Call:
    return call(tid, "pthread_mutex_lock", start, end, result, object=at)


def unlock(tid: int, start: int, end: int | None, at: int = LOCK, result: int = 0) -> Call:
    return call(tid, "pthread_mutex_unlock", start, end, result, object=at)


def mask(tid: int, start: int, how: int, signals: int, result: int = 0) -> Call:
    return call(
        tid, "pthread_sigmask", start, start + 5, result, how=how, given=0x7FF0, set=signals
    )


def found(calls: list[Call], masks: dict[int, int] | None = None) -> list[tuple[int, int, int]]:
    made, functions = table("irqsoff", calls)
    held = sections(made, functions, masks)
    columns = (held.object, held.start_ns, held.start_ns + held.held_ns)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def test_held_from_the_return_of_lock_to_the_entry_of_unlock() -> None:
    assert found([lock(1, 10, 20), unlock(1, 50, 60)]) == [(LOCK, 20, 50)]


def test_locks_inside_of_each_other_are_sections_of_their_own() -> None:
    calls = [
        lock(1, 0, 10),
        lock(1, 20, 30, OTHER_LOCK),
        unlock(1, 40, 41),
        unlock(1, 60, 61, OTHER_LOCK),
    ]
    assert found(calls) == [(LOCK, 10, 40), (OTHER_LOCK, 30, 60)]


def test_a_recursive_mutex_is_held_until_its_last_unlock() -> None:
    calls = [lock(1, 0, 1), lock(1, 10, 11), unlock(1, 20, 21), unlock(1, 30, 31)]
    assert found(calls) == [(LOCK, 1, 30)]


def test_threads_hold_apart() -> None:
    calls = [lock(1, 0, 10), unlock(1, 30, 31), lock(2, 5, 35), unlock(2, 90, 91)]
    assert found(calls) == [(LOCK, 10, 30), (LOCK, 35, 90)]


@pytest.mark.parametrize(
    ("name", "result"),
    [("pthread_mutex_trylock", 16), ("pthread_mutex_timedlock", 110)],
)
def test_a_lock_that_was_not_had_is_not_held(name: str, result: int) -> None:
    assert found([call(1, name, 0, 10, result, object=LOCK), unlock(1, 20, 21, LOCK, 1)]) == []


def test_a_robust_mutex_of_a_dead_owner_is_held() -> None:
    assert found([lock(1, 0, 10, result=130), unlock(1, 20, 21)]) == [(LOCK, 10, 20)]


def test_an_unlock_that_fails_releases_nothing() -> None:
    calls = [lock(1, 0, 10), unlock(1, 20, 21, result=1), unlock(1, 30, 31)]
    assert found(calls) == [(LOCK, 10, 30)]


def test_what_was_held_before_the_capture_or_is_held_after_it_has_no_length() -> None:
    assert found([unlock(1, 10, 11), lock(1, 20, 30)]) == []
    assert found([unlock(1, 10, 11), lock(1, 20, 30), unlock(1, 40, 41)]) == [(LOCK, 30, 40)]


def test_a_wait_on_a_condition_is_two_sections() -> None:
    wait = call(1, "pthread_cond_timedwait", 20, 70, 110, object=0x9, mutex=LOCK)
    assert found([lock(1, 0, 10), wait, unlock(1, 90, 91)]) == [(LOCK, 10, 20), (LOCK, 70, 90)]


def test_musls_wait_calls_unlock_and_lock_itself() -> None:
    calls = [
        lock(1, 0, 10),
        call(1, "pthread_cond_wait", 20, 70, object=0x9, mutex=LOCK),
        call(1, "pthread_cond_timedwait", 21, 69, object=0x9, mutex=LOCK),
        unlock(1, 22, 23),
        lock(1, 60, 65),
        unlock(1, 90, 91),
    ]
    assert found(calls) == [(LOCK, 10, 20), (LOCK, 70, 90)]


def test_spin_and_reader_locks() -> None:
    calls = [
        call(1, "pthread_spin_unlock", 0, 1, object=LOCK),  # pthread_spin_init, in glibc
        call(1, "pthread_spin_lock", 10, 20, object=LOCK),
        call(1, "pthread_rwlock_rdlock", 21, 22, object=OTHER_LOCK),
        call(1, "pthread_rwlock_tryrdlock", 23, 24, object=OTHER_LOCK),
        call(1, "pthread_rwlock_unlock", 25, 26, object=OTHER_LOCK),
        call(1, "pthread_rwlock_unlock", 27, 28, object=OTHER_LOCK),
        call(1, "pthread_spin_unlock", 40, 41, object=LOCK),
    ]
    assert found(calls) == [(LOCK, 20, 40), (OTHER_LOCK, 22, 27)]


def test_signals_are_masked_from_the_first_to_the_last() -> None:
    calls = [
        mask(1, 0, BLOCK, 0b0001),
        mask(1, 10, BLOCK, 0b0110),
        mask(1, 20, UNBLOCK, 0b0011),
        mask(1, 30, SETMASK, 0),
    ]
    assert found(calls) == [(0, 5, 30)]


def test_what_was_masked_before_is_not_counted() -> None:
    calls = [mask(1, 0, BLOCK, 0b1110), mask(1, 10, SETMASK, 0b1000)]
    assert found(calls) == []
    assert found(calls, {1: 0b1000}) == [(0, 5, 10)]


def test_a_question_or_a_failed_call_masks_nothing() -> None:
    question = call(1, "pthread_sigmask", 0, 5, how=SETMASK, given=0, set=0)
    assert found([question, mask(1, 10, 7, 1, result=22), mask(1, 20, UNBLOCK, 1)]) == []


def test_sigprocmask_is_one_call() -> None:
    calls = []
    for start, how in ((0, BLOCK), (100, UNBLOCK)):
        words = {"how": how, "given": 0x7FF0, "set": 6}
        calls.append(call(1, "sigprocmask", start, start + 10, **words))
        calls.append(call(1, "pthread_sigmask", start + 1, start + 9, **words))
    assert found(calls) == [(0, 10, 100)]


def test_signals_that_cannot_be_masked_do_not_count() -> None:
    everything = (1 << 64) - 1
    able = everything & ~(1 << 31 | 1 << 32)
    assert found([mask(1, 0, BLOCK, everything), mask(1, 9, UNBLOCK, able)]) == [(0, 5, 9)]


def test_the_longest_of_locks_and_of_signals() -> None:
    calls = [
        *(lock(1, 0, 10), unlock(1, 50, 51), lock(1, 60, 61), unlock(1, 70, 71)),
        *(mask(1, 80, BLOCK, 1), mask(1, 300, UNBLOCK, 1)),
    ]
    held = sections(*table("irqsoff", calls))
    assert held.held_ns[held.longest(signals=False)] == 40
    assert KINDS[held.kind[held.longest(signals=True)]] == "signals"
    assert sections(*table("irqsoff", [])).longest(signals=False) is None


def test_attempts_tell_of_contention() -> None:
    calls = [lock(1, 0, 10), call(2, "pthread_mutex_trylock", 20, 21, 16, object=LOCK)]
    tried = attempts(*table("irqsoff", calls))
    assert tried.wait_ns.tolist() == [10, 1]
    assert tried.failed.tolist() == [False, True]


STEPS = st.lists(
    st.tuples(st.integers(1, 2), st.sampled_from([LOCK, OTHER_LOCK]), st.booleans()), max_size=30
)


@settings(deadline=None)
@given(STEPS)
def test_equals_a_walk_through_the_calls(steps: list[tuple[int, int, bool]]) -> None:
    calls, wanted = [], []
    depth: dict[tuple[int, int], int] = {}
    since: dict[tuple[int, int], int] = {}
    for index, (tid, at, takes) in enumerate(steps):
        start, end, key = index * 10, index * 10 + 4, (tid, at)
        calls.append((lock if takes else unlock)(tid, start, end, at))
        level = depth.get(key, 0)
        if takes and level == 0:
            since[key] = end
        if not takes and level == 1:
            wanted.append((at, since[key], start))
        depth[key] = max(level + (1 if takes else -1), 0)
    assert sorted(found(calls)) == sorted(wanted)


MASKS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(0, 7)), max_size=40)


@settings(deadline=None)
@given(MASKS, st.dictionaries(st.integers(1, 3), st.integers(0, 7)))
def test_masks_equal_a_walk_through_the_calls(
    steps: list[tuple[int, int, int]], at_first: dict[int, int]
) -> None:
    wanted, masks, since = [], dict(at_first), {}
    for index, (tid, how, signals) in enumerate(steps):
        base, old = at_first.get(tid, 0), masks.get(tid, 0)
        new = {BLOCK: old | signals, UNBLOCK: old & ~signals, SETMASK: signals}[how]
        masks[tid] = new
        if new & ~base and not old & ~base:
            since[tid] = index * 10 + 5
        elif old & ~base and not new & ~base:
            wanted.append((0, since.pop(tid), index * 10))
    calls = [mask(tid, index * 10, how, bits) for index, (tid, how, bits) in enumerate(steps)]
    assert sorted(found(calls, at_first)) == sorted(wanted)
