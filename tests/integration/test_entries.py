# SPDX-License-Identifier: Apache-2.0
"""Functions without NOPs: their first instructions do elsewhere what they did."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear_until_end, tell, text_equals_files, untouched
from test_life import calls
from test_storms import STORMS, part_of, survives

import textpoke
import textpoke.leave

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Compile, Start

    from textpoke.agent import Agent

BUILDS = {
    "pie": ("-fPIE", "-pie"),
    "non-pie": ("-fno-pie", "-no-pie"),
    "static": ("-static",),
    "static-pie": ("-fPIE", "-static-pie"),
    "endbr64": ("-fPIE", "-pie", "-fcf-protection=full"),
    "stripped": ("-fPIE", "-pie", "-s"),
    "size": ("-fPIE", "-pie", "-Os"),
    "frames": ("-fPIE", "-pie", "-O0", "-fno-omit-frame-pointer"),
}
REFUSED = {"e_refused_trap": "traps"}
PUNS = {"e_pun_loop", "e_pun_call"}
TOGGLE_S = 1.0
MOST_HELD = 16
TRACED = sorted(programs.FUNCTIONS)


@pytest.fixture
def entries(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("entries.c", *BUILDS["pie"], "-fcf-protection=none"))


def rows(process: subprocess.Popen[str]) -> dict[str, int]:
    """What the program says until "end": calls by function, and wrong results."""
    found = {}
    assert process.stdout is not None
    while (line := process.stdout.readline().strip()) != "end":
        name, number = line.split()
        found[name] = int(number)
    return found


@pytest.mark.parametrize("build", [name for name in BUILDS if name != "stripped"])
def test_a_program_without_nops_is_traced_and_let_go_as_it_was(
    compile_target: Compile, start_target: Start, tmp_path: Path, build: str
) -> None:
    process = start_target(compile_target("counter.c", *BUILDS[build]))
    output = tmp_path / "x.tptrace"
    tell(process, "phase 1 4")
    hear_until_end(process)
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            with target.trace(TRACED, output=output) as trace:
                assert {site.function for site in trace.chosen} == programs.FUNCTIONS
                assert {site.kind for site in trace.chosen} == {textpoke.SiteKind.ENTRY}
                assert trace.refused == []
                tell(process, "phase 1000 4")
                own = hear_until_end(process)
            assert trace.lost == 0
        assert target.report is not None
        assert target.report.residue == []
        assert target.report.text.differing == []
    assert calls(output) == {
        tid: {"top": top, "middle": middle, "leaf": leaf} for tid, top, middle, leaf, _ in own
    }
    assert ask(process, "ping") == "pong"


def test_a_stripped_program_is_traced_by_its_unwind_entries(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("counter.c", *BUILDS["stripped"]))
    tell(process, "phase 1 1")  # stacks that libc keeps
    hear_until_end(process)
    with untouched(process), textpoke.attach(process.pid) as target, target.trace() as trace:
        tell(process, "phase 1000 1")
        hear_until_end(process)
    assert trace.events >= 1000 * programs.EVENTS_PER_TOP
    assert {site.source for site in trace.chosen} <= {"frame", "dynsym", "plt"}


@pytest.mark.parametrize("mode", ["int3", "stop"])
def test_every_kind_of_entry_is_toggled_under_hot_threads(
    entries: subprocess.Popen[str], mode: str
) -> None:
    toggles = traps = 0
    assert ask(entries, "hot 2") == "hot"
    tell(entries, "stop")
    rows(entries)
    with untouched(entries):
        assert ask(entries, "hot 2") == "hot"
        with textpoke.attach(entries.pid) as target:
            end = time.monotonic() + TOGGLE_S
            while time.monotonic() < end:
                with target.trace("e_*", mode=mode) as trace:
                    toggles += 1
                assert trace.off is not None
                assert trace.on is not None
                traps += trace.on.traps + trace.off.traps
                assert trace.left_alone == 0
        tell(entries, "stop")
        assert rows(entries)["wrong"] == 0
    assert toggles > 3
    assert traps == 0 if mode == "stop" else traps > 0
    assert text_equals_files(entries.pid)


@pytest.mark.parametrize("mode", ["int3", "stop"])
def test_every_call_is_counted(entries: subprocess.Popen[str], tmp_path: Path, mode: str) -> None:
    output = tmp_path / "x.tptrace"
    with (
        textpoke.attach(entries.pid) as target,
        target.trace("entries*!e_*", output=output, mode=mode) as trace,
    ):
        assert ask(entries, "hot 2") == "hot"
        trace.run(seconds=0.2)
        tell(entries, "stop")
        made = rows(entries)
    assert made.pop("wrong") == 0
    assert {site.function for site, _ in trace.refused} <= PUNS  # where they lead, all may be taken
    with textpoke.Capture(output) as capture:
        total = trace.events + trace.lost
        assert capture.end is not None
    chosen = {p.site.function for p in trace.plan.sites} if trace.plan else set()
    assert chosen >= set(made) - PUNS
    # Those that are no rows of the program's table are called by others, once a call of theirs.
    callers = {"e_callee": ("e_call", "e_call_indirect"), "e_jumped": ("e_jump_on",)}
    callers["e_red_zone_on"] = ("e_red_zone",)
    callers["e_padded"] = ("e_push",)
    expected = sum(n for name, n in made.items() if name in chosen)
    expected += sum(made[name] for who in callers.values() for name in who)
    assert total == expected


def test_what_cannot_be_displaced_is_refused_by_name(entries: subprocess.Popen[str]) -> None:
    with textpoke.attach(entries.pid) as target:
        reasons = {s.function: s.reason for s in target.all_sites() if s.reason}
        for name, word in REFUSED.items():
            assert word in (reasons[name] or "")
            with pytest.raises(textpoke.NotPatchable, match=word):
                target.sites(name)


@pytest.mark.parametrize("mode", ["int3", "stop"])
@pytest.mark.parametrize("how", ["sleep", "sleep elsewhere"])
def test_a_thread_that_sleeps_among_the_first_instructions_is_left_there(
    entries: subprocess.Popen[str], how: str, mode: str
) -> None:
    assert ask(entries, how) == "asleep"
    with textpoke.attach(entries.pid) as target:
        with target.trace("e_*", mode=mode) as trace:
            refused = {site.function: why for site, why in trace.refused}
            assert "a thread stands among its first instructions" in refused.pop("e_push")
            assert refused.keys() <= PUNS
            assert ask(entries, "ping") == "pong"
        assert ask(entries, "wake") == "right"
        with target.trace("e_*", mode=mode) as trace:
            assert {site.function for site, _ in trace.refused} <= PUNS
            assert ask(entries, "ping") == "pong"
    assert target.report is not None
    assert target.report.residue == []


@pytest.mark.parametrize("mode", ["int3", "stop"])
@pytest.mark.parametrize("go", ["go", "go below"])
def test_a_stack_that_is_more_or_less_than_its_mapping_is_looked_at(
    compile_target: Compile, start_target: Start, mode: str, go: str
) -> None:
    process = start_target(compile_target("growing.c", *BUILDS["pie"], "-fcf-protection=none"))
    with textpoke.attach(process.pid) as target:
        trace = target.trace("work", mode=mode)
        assert ask(process, go) == "inside"
        with trace:
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "right"
    assert process.poll() is None
    assert target.report is not None
    assert target.report.residue == []


@pytest.mark.parametrize(
    ("build", "returns"), [("non-pie", False), ("non-pie", True), ("pie", False), ("pie", True)]
)
def test_numbers_on_a_stack_keep_nothing_but_return_addresses_do(
    compile_target: Compile, start_target: Start, build: str, returns: bool
) -> None:
    entries = start_target(compile_target("entries.c", *BUILDS[build], "-fcf-protection=none"))
    with textpoke.attach(entries.pid) as target:
        with target.trace("e_*"):
            assert ask(entries, "ping") == "pong"
        numbers = [n for n, after_call in addresses_of_ours(target.agent) if after_call is returns]
        assert len(numbers) >= MOST_HELD
        assert ask(entries, "hold " + " ".join(map(str, numbers[:MOST_HELD]))) == "held"
    assert target.report is not None
    assert [line for line in target.report.residue if "will return" not in line] == []
    assert bool(target.report.residue) is returns
    assert ask(entries, "drop") == "dropped"
    assert textpoke.leave.detach_remains(entries.pid).residue == []
    assert text_equals_files(entries.pid)


def addresses_of_ours(agent: Agent) -> Iterator[tuple[int, bool]]:
    """Addresses within our stubs, and whether each is where a CALL returns to."""
    head = agent.image()
    for region in (head.regions[i] for i in range(head.region_count)):
        code = agent.read(region.start, region.bytes)
        for at in range(8, len(code)):
            if any(code[at : at + 5]):
                yield region.start + at, code[at - 5] == 0xE8


@pytest.mark.parametrize("storm", STORMS)
def test_a_storm_passes_while_its_functions_entries_are_toggled(
    compile_target: Compile, start_target: Start, storm: str
) -> None:
    survives(start_target(compile_target("storms.c", *BUILDS["pie"], *part_of(storm)), storm))


def test_libc_is_traced_under_a_running_program(
    compile_target: Compile, start_target: Start
) -> None:
    process = start_target(compile_target("counter.c", *BUILDS["pie"]))
    tell(process, "phase 1 2")
    hear_until_end(process)
    with untouched(process):
        assert ask(process, "hot 2") == "hot"
        with textpoke.attach(process.pid) as target:
            for _ in range(3):
                with target.trace("libc!*") as trace:
                    assert ask(process, "ping") == "pong"
                assert trace.on is not None
                assert textpoke.Mode.INT3 not in {choice.mode for choice in trace.on.choices}
        tell(process, "stop")
        assert [row[4] for row in hear_until_end(process)] == [0, 0]
