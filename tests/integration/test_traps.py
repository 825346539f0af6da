# SPDX-License-Identifier: Apache-2.0
"""A program's own signals: what is not our int3 reaches whom it would have (pitfalls 2, 12, 18)."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear_until_end, status, tell, untouched

import textpoke
from textpoke import Mode

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

SI_USER, SI_QUEUE, SI_TKILL, SI_KERNEL = 0, -1, -6, 0x80
# code, value, rip behind the first int3, SIGTRAP blocked, SIGUSR2 blocked
EVERY_WAY = [
    [SI_TKILL, 0, -1, 1, 1],
    [SI_USER, 0, -1, 1, 1],
    [SI_QUEUE, 42, -1, 1, 1],
    [SI_KERNEL, 0, 1, 1, 1],
    [SI_KERNEL, 0, 3, 1, 1],
]


@pytest.fixture
def traps(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("traps.c", *programs.PIE))


def trap(process: subprocess.Popen[str]) -> list[list[int]]:
    tell(process, "trap")
    return hear_until_end(process)


def test_a_programs_own_traps_are_seen_as_without_us(traps: subprocess.Popen[str]) -> None:
    ask(traps, "own")
    assert trap(traps) == EVERY_WAY
    with untouched(traps):
        with textpoke.attach(traps.pid) as target:
            assert trap(traps) == EVERY_WAY
            with target.trace() as trace:
                assert trap(traps) == EVERY_WAY
            # The command itself, and the handler's own traced call for each of the five.
            assert trace.events == 1 + len(EVERY_WAY)
            assert trap(traps) == EVERY_WAY
        assert target.report is not None
        assert target.report.residue == []
    assert trap(traps) == EVERY_WAY


def test_a_trap_that_nobody_handles_kills_as_without_us(traps: subprocess.Popen[str]) -> None:
    with textpoke.attach(traps.pid) as target, target.trace():
        tell(traps, "die")
        assert traps.wait() == -signal.SIGTRAP


def test_a_program_that_takes_sigtrap_away_is_poked_without_traps(
    traps: subprocess.Popen[str],
) -> None:
    with untouched(traps):
        target = textpoke.attach(traps.pid)
        trace = target.trace()
        trace.start()
        ask(traps, "take")
        with pytest.raises(textpoke.UnsupportedTarget) as caught:
            trace.target.batch(mode="int3").commit()
        assert caught.value.reason == "sigtrap-taken"
        trace.stop()
        assert trace.off is not None
        assert {choice.mode for choice in trace.off.choices} <= {Mode.DIRECT, Mode.STOP}
        ask(traps, "give")  # as a program does that puts back what it found
        report = target.detach()
        assert report.residue == []
        assert report.handler_restored


def test_a_thread_that_blocks_sigtrap_later_never_meets_an_int3(
    traps: subprocess.Popen[str],
) -> None:
    with untouched(traps), textpoke.attach(traps.pid) as target:
        ask(traps, "block")
        with pytest.raises(textpoke.UnsupportedTarget) as caught:
            target.trace(mode="int3").start()
        assert caught.value.reason == "sigtrap-blocked"
        with target.trace() as trace:
            ask(traps, "unblock")
        assert trace.events == 1
        assert trace.on is not None
        assert "blocks SIGTRAP" in trace.on.choices[0].why
        with target.trace() as trace:
            ask(traps, "unblock")
        assert trace.events == 1
        # It may block it again at any moment: the function to do so is in its imports.
        assert {choice.mode for choice in trace.on.choices} <= {Mode.DIRECT, Mode.STOP}


def test_a_handler_put_over_ours_is_left_where_it_is(traps: subprocess.Popen[str]) -> None:
    with textpoke.attach(traps.pid) as target:
        ask(traps, "take")
    assert target.report is not None
    assert not target.report.handler_restored
    [line] = target.report.residue
    assert "SIGTRAP handler" in line
    assert trap(traps) == EVERY_WAY


def test_no_signal_is_lost_while_a_thread_is_held(traps: subprocess.Popen[str]) -> None:
    number = int(ask(traps, "storm"))
    sent = 0
    done = threading.Event()

    def storm() -> None:
        nonlocal sent
        while not done.is_set():
            os.kill(traps.pid, number)
            sent += 1
            done.wait(0.0001)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        for _ in range(5):
            with textpoke.attach(traps.pid) as target:
                for _ in range(5):
                    with target.trace():
                        pass
            assert target.report is not None
            assert target.report.residue == []
    finally:
        done.set()
        thread.join()
    while int(status(traps.pid)["ShdPnd"], 16):
        pass
    assert int(ask(traps, "count")) == sent > 0
