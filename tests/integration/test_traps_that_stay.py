# SPDX-License-Identifier: Apache-2.0
"""Functions that nothing but an int3 that stays can patch: traced on request, where it is safe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from observe import ask, tell, text_equals_files, untouched
from observe import textpoke as command
from test_entries import BUILDS, PUNS, rows

import textpoke
from textpoke import plan
from textpoke.modes import Mode
from textpoke.plan import Method

if TYPE_CHECKING:
    import subprocess

    from conftest import Compile, Start

FLAGS = (*BUILDS["pie"], "-fcf-protection=none")
UNDONE_S = 10.0
TOGGLE_S = 1.0
TRAPPED = PUNS | {"e_refused_trap"}
CALLED = {"e_pun_loop"}  # of these, by call_all()


@pytest.fixture
def entries(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    return start_target(compile_target("entries.c", *FLAGS, "-DNO_HANDLERS"))


@pytest.fixture(autouse=True)
def no_puns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they lead is often free: do without them, so that traps take their place."""
    monkeypatch.setattr(plan, "_MOST_PUNS", 0)


def test_every_call_is_counted(entries: subprocess.Popen[str]) -> None:
    with textpoke.attach(entries.pid) as target, target.trace("e_*", traps=True) as trace:
        assert trace.plan is not None
        methods = {p.site.function: p.method for p in trace.plan.sites}
        assert {name for name, how in methods.items() if how is Method.TRAP} == TRAPPED
        assert trace.refused == []
        assert ask(entries, "hot 2") == "hot"
        trace.run(seconds=0.2)
        tell(entries, "stop")
        made = rows(entries)
        trace.run(seconds=0.05)
        everything = trace.events + trace.lost
    assert made.pop("wrong") == 0
    with textpoke.attach(entries.pid) as target, target.trace(sorted(TRAPPED), traps=True) as trace:
        assert ask(entries, "hot 2") == "hot"
        trace.run(seconds=0.2)
        tell(entries, "stop")
        made = rows(entries)
        trace.run(seconds=0.05)
        assert trace.events + trace.lost == sum(made[name] for name in CALLED) > 1000
    assert everything > 1000
    assert made["wrong"] == 0
    assert text_equals_files(entries.pid)


def test_toggling_under_hot_threads(entries: subprocess.Popen[str]) -> None:
    assert ask(entries, "hot 2") == "hot"
    tell(entries, "stop")
    rows(entries)
    toggles = 0
    with untouched(entries):
        assert ask(entries, "hot 2") == "hot"
        with textpoke.attach(entries.pid) as target:
            end = time.monotonic() + TOGGLE_S
            while time.monotonic() < end:
                with target.trace("e_*", traps=True) as trace:
                    toggles += 1
                assert trace.left_alone == 0
        assert target.report is not None
        assert target.report.clean
        tell(entries, "stop")
        assert rows(entries)["wrong"] == 0
    assert toggles > 3


def test_they_are_never_written_in_another_mode(entries: subprocess.Popen[str]) -> None:
    with (
        textpoke.attach(entries.pid) as target,
        target.trace("e_*", traps=True, mode="stop") as trace,
    ):
        assert trace.on is not None
        modes = {choice.mode: len(choice.indexes) for choice in trace.on.choices}
        assert modes.keys() == {Mode.STOP, Mode.INT3}
        assert modes[Mode.INT3] == len(TRAPPED)
        assert ask(entries, "ping") == "pong"


def test_a_forked_child_passes_them(entries: subprocess.Popen[str]) -> None:
    with textpoke.attach(entries.pid) as target, target.trace("e_*", traps=True):
        assert ask(entries, "fork") == "child 0"
    assert text_equals_files(entries.pid)


def test_the_agent_takes_them_away_when_its_tool_is_gone(entries: subprocess.Popen[str]) -> None:
    target = textpoke.attach(entries.pid)
    target.trace("e_*", traps=True).start()
    assert not text_equals_files(entries.pid)
    target.agent.close()
    end = time.monotonic() + UNDONE_S
    while not text_equals_files(entries.pid) and time.monotonic() < end:
        assert ask(entries, "ping") == "pong"
    assert text_equals_files(entries.pid)
    with textpoke.attach(entries.pid) as target:
        pass
    assert target.report is not None
    assert target.report.clean


def test_without_the_word_they_are_refused(entries: subprocess.Popen[str]) -> None:
    with textpoke.attach(entries.pid) as target:
        with target.trace("e_*") as trace:
            refused = {site.function: why for site, why in trace.refused}
        assert refused.keys() == PUNS
        with pytest.raises(textpoke.NotPatchable):
            target.sites("e_refused_trap")


@pytest.mark.parametrize(
    ("flags", "name"),
    [(("-DNO_HANDLERS", "-DMAY_MASK"), "pthread_sigmask"), ((), "sigaction")],
    ids=["masks", "handlers"],
)
def test_where_sigtrap_may_be_blocked_they_are_refused_by_name(
    compile_target: Compile, start_target: Start, flags: tuple[str, ...], name: str
) -> None:
    process = start_target(compile_target("entries.c", *FLAGS, *flags))
    with textpoke.attach(process.pid) as target, target.trace("e_*", traps=True) as trace:
        refused = {site.function: why for site, why in trace.refused}
        assert refused.keys() == TRAPPED
        assert all("could kill the program" in why and name in why for why in refused.values())
        assert ask(process, "ping") == "pong"


def test_in_libc_they_are_refused_by_name(entries: subprocess.Popen[str]) -> None:
    with textpoke.attach(entries.pid) as target:
        kinds = (textpoke.SiteKind.TRAP, textpoke.SiteKind.PUN)
        chosen = [site for site in target.sites("libc!*", traps=True) if site.kind in kinds]
        assert chosen
        refused = target.prepare([*chosen, *target.sites("e_push")], traps=True).refused
        assert {site.address for site, _ in refused} == {site.address for site in chosen}
        assert all("runtime" in why for _, why in refused)


def test_record_takes_the_word(entries: subprocess.Popen[str], tmp_path: object) -> None:
    output = f"{tmp_path}/x.tptrace"
    words = ("record", "-p", entries.pid, "-i", "e_*", "-d", "200ms", "-o", output, "--traps")
    done = command(*words)
    assert done.code == 0
    assert "an int3 that stays" in done.out + done.err
    assert text_equals_files(entries.pid)
