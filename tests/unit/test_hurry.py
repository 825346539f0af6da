# SPDX-License-Identifier: Apache-2.0
"""Being scheduled before others: for a moment, and by nobody's leave but the kernel's."""

from __future__ import annotations

import os

import pytest

from textpoke._native import lib
from textpoke.agent import hurried


def allowed() -> int:
    """The policy that the kernel lets us have."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        return os.SCHED_OTHER
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return os.SCHED_FIFO


def policy() -> int:
    return os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK


def test_it_is_over_with_the_block() -> None:
    may = allowed()
    assert policy() == os.SCHED_OTHER
    with hurried():
        inside = policy()
        with hurried():  # as the native side does, too
            assert policy() == inside
        assert policy() == inside
    assert inside == may
    assert policy() == os.SCHED_OTHER


def test_it_stays_on_one_processor_meanwhile() -> None:
    before = os.sched_getaffinity(0)
    with hurried():
        inside = os.sched_getaffinity(0)
    assert len(inside) == 1 if allowed() == os.SCHED_FIFO else inside == before
    assert inside <= before
    assert os.sched_getaffinity(0) == before


def test_it_is_over_when_the_block_fails() -> None:
    with pytest.raises(KeyboardInterrupt), hurried():
        raise KeyboardInterrupt
    assert policy() == os.SCHED_OTHER


def test_who_is_scheduled_otherwise_stays_so() -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        assert not lib.tp_hurry()
        with hurried():
            assert policy() == os.SCHED_BATCH
        assert policy() == os.SCHED_BATCH
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
