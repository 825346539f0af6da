# SPDX-License-Identifier: Apache-2.0
"""Small runs of what `make stress` does at length, and proof that it sees what it looks for."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import kills
import numpy as np
import pytest
import soak
import steps
import toggle
import torn
import torn_sites

import textpoke

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SEED = 7


def nobody(_: object) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return torn.build(tmp_path_factory.mktemp("stress"), 1)


@pytest.fixture
def target(program: Path) -> Iterator[torn.Torn]:
    with torn.Torn(program, 2) as running:
        yield running


def slots(target: torn.Torn, kind: str) -> np.ndarray:
    """Numbers of the slots of one kind."""
    names = [k.name for k in torn_sites.kinds()]
    return np.flatnonzero(target.slots["kind"] == names.index(kind))


def write(target: torn.Torn, slot: int, data: bytes) -> None:
    """Write over a site as no tool should."""
    with open(f"/proc/{target.pid}/mem", "r+b", buffering=0) as memory:
        os.pwrite(memory.fileno(), data, int(target.slots["site"][slot]))


def wait_until(target: torn.Torn, what: str, more_than: int | None = None) -> None:
    """Until the threads have counted more of `what` than now, or than so many."""
    least = int(target.tallies[what].sum()) if more_than is None else more_than
    deadline = time.monotonic() + torn.PATIENCE_S
    while int(target.tallies[what].sum()) <= least:
        assert target.alive
        assert time.monotonic() < deadline, f"no more than {least} {what}"
        time.sleep(0.001)


def finished(target: torn.Torn) -> torn.Counts:
    counts = torn.Counts()
    target.finish(counts)
    return counts


@pytest.mark.parametrize("threads", [1, 8])
def test_toggled_sites_are_old_or_new_on_every_call(program: Path, threads: int) -> None:
    counts = toggle.Stage(program, threads, 2.5, SEED).run(nobody)
    assert counts.violations == []
    assert (counts.torn, counts.stale, counts.lost_calls, counts.crashes) == (0, 0, 0, 0)
    assert counts.site_pokes > 1000
    assert counts.traps > 0
    assert counts.trace_rounds > 0
    assert counts.events > 0


@pytest.mark.parametrize("kind", [k.name for k in torn_sites.kinds()])
def test_every_kind_of_site_is_new_after_its_batch_and_old_after_the_detach(
    target: torn.Torn, kind: str
) -> None:
    chosen, counts = slots(target, kind), torn.Counts()
    with textpoke.attach(target.pid) as attached:
        target.toggle(attached, chosen, counts)
        wait_until(target, "new")
        target.toggle(attached, chosen, counts)
        wait_until(target, "old")
        if not target.slots["handler"][chosen].any():
            target.toggle(attached, chosen, counts)
        target.is_unsure()
    target.is_old()
    seen = finished(target)
    assert seen.violations == []


def test_a_site_that_changes_behind_the_tools_back_is_seen(target: torn.Torn) -> None:
    [slot, *_] = slots(target, "call -> call")
    write(target, slot, target.slots["new"][slot][:5].tobytes())
    wait_until(target, "stale")
    seen = finished(target)
    assert seen.stale > 0
    assert seen.violations != []


def test_an_instruction_that_is_neither_old_nor_new_is_seen(target: torn.Torn) -> None:
    [slot, *_] = slots(target, "mov -> jmp")
    target.is_unsure()
    write(target, slot, b"\xb8\x01\x02\x03\x04")
    wait_until(target, "torn")
    seen = finished(target)
    assert seen.torn > 0
    assert seen.violations != []


def test_a_call_that_is_skipped_is_seen(target: torn.Torn) -> None:
    """As a handler would that does not emulate: right register, nothing executed."""
    [slot, *_] = slots(target, "call -> call")
    target.is_unsure()
    write(target, slot, b"\x29\xc0\x0f\x1f\x00")  # sub %eax, %eax; nop
    first = int(target.tallies["made"].sum())
    wait_until(target, "made", first + 100 * len(target.slots))
    seen = finished(target)
    assert seen.lost_calls > 0
    assert seen.violations != []


def test_attach_and_detach_leave_nothing_in_a_loaded_process(program: Path) -> None:
    result = soak.soak(program, 10, SEED, nobody)
    assert result.cycles == 10
    assert result.residue == []
    assert result.counts.violations == []
    assert result.counts.traps > 0


def test_killed_tools_leave_nothing_that_the_next_one_cannot_remove(program: Path) -> None:
    result = kills.Kills()
    kills.ToolKills(program, result, SEED).run(6, nobody)
    assert result.violations == []
    assert result.tool == 6


def test_tools_whose_target_is_killed_end_with_a_line(program: Path) -> None:
    result = kills.Kills()
    kills.TargetKills(program, result, SEED).run(6, nobody)
    assert result.violations == []
    assert result.target == 6


@pytest.mark.parametrize("verb", steps.VERBS)
@pytest.mark.parametrize("call", ["ptrace", "syscall", "pread64"])
def test_death_at_a_step_of_either_leaves_nothing_and_says_one_line(
    program: Path, tmp_path: Path, verb: str, call: str
) -> None:
    result = kills.Kills()
    few = steps.StepKills(program, steps.build(tmp_path), result, 0.03, SEED)
    few.run(nobody, verbs=[verb], calls=[call])
    assert result.violations == []
    assert result.tool + result.target > 0  # a step may not come in a run that waits less
