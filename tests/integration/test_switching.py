# SPDX-License-Identifier: Apache-2.0
"""From one tracer to another under hot threads: no call goes unseen, several traces share sites."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear_until_end, tell, untouched

import textpoke
from textpoke._native import lib
from textpoke.poke import Poke
from textpoke.profile_rows import bucket_of, bucket_range
from textpoke.report.counts import count
from textpoke.target import read_maps

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from conftest import Compile, Start

    Counter = Callable[[str], subprocess.Popen[str]]

BUILDS = ["pie", "non-pie", "nop5", "nop10", "masks"]
OTHER = {
    "no-nops": ("-fPIE", "-pie", "-fcf-protection=none"),
    "masks": (*programs.PIE, "-DMASKS"),  # its pads jump by cells
}
RING_BYTES = 8 << 20
PHASES = 12


@pytest.fixture
def counter(compile_target: Compile, start_target: Start) -> Counter:
    def start(build: str) -> subprocess.Popen[str]:
        options = OTHER.get(build) or programs.BUILDS[build]
        process = start_target(compile_target("counter.c", *options))
        tell(process, "phase 1 3")  # stacks that libc keeps
        hear_until_end(process)
        return process

    return start


def calls(path: Path) -> dict[int, dict[str, int]]:
    """Calls by thread and function."""
    with textpoke.Capture(path) as capture:
        return {
            thread.tid: {
                capture.meta.sites[site].function: number
                for site, number in thread.calls.by_site().items()
                if capture.meta.sites[site].function in ("top", "middle", "leaf")
            }
            for thread in count(capture).threads
        }


def while_it_runs(process: subprocess.Popen[str], act: Callable[[], object]) -> list[tuple]:
    """Call `act` in the midst of some phases of the program; returns its own counts."""
    own: list[tuple] = []
    for _ in range(PHASES):
        tell(process, "phase 20000 2")
        act()
        own += hear_until_end(process)
    return own


@pytest.mark.parametrize("build", [*BUILDS, "no-nops"])
def test_no_call_is_lost_when_tracers_are_switched(
    counter: Counter, tmp_path: Path, build: str
) -> None:
    process = counter(build)
    output = tmp_path / "x.tptrace"
    switches = 0
    with untouched(process), textpoke.attach(process.pid, ring_bytes=RING_BYTES) as target:
        trace = target.trace(["top", "middle", "leaf"], everything=True, output=output)
        with trace:
            trace.tracer = "function_graph"  # the first time takes longer
            trace.tracer = "function"

            def act() -> None:
                nonlocal switches
                trace.tracer = "function_graph" if switches % 2 == 0 else "function"
                switches += 1
                trace.drain()

            own = while_it_runs(process, act)
        assert trace.lost == 0
        assert trace.overruns == 0
        assert not trace.refused
    assert switches == PHASES
    seen = calls(output)
    assert {tid: seen.get(tid) for tid, *_ in own} == {
        tid: {"top": top, "middle": middle, "leaf": leaf} for tid, top, middle, leaf, _ in own
    }


def test_cells_are_stored_whole_or_not_at_all(counter: Counter) -> None:
    process = counter("masks")
    with (
        untouched(process),
        textpoke.attach(process.pid) as target,
        target.trace(["top", "middle", "leaf"]) as trace,
    ):
        assert trace.plan is not None
        cell = min(p.cell for p in trace.plan.sites)
        assert cell
        held = target.agent.read(cell, 24)
        for place, old, code in (
            (cell, held[:16] + bytes(8), errno.EILSEQ),
            (cell + 4, held, errno.EINVAL),
            (trace.plan.sites[0].site.address & ~7, held, errno.EINVAL),
        ):
            with pytest.raises(textpoke.AgentFailed) as caught:
                target.agent.store_words(place, old, bytes(24))
            assert caught.value.errno == code
        assert target.agent.read(cell, 24) == held
        [rights] = [m.perms for m in read_maps(process.pid) if m.start <= cell < m.end]
        assert rights == "r--p"


@pytest.mark.parametrize("build", ["pie", "nop5", "no-nops", "masks"])
def test_traces_share_their_sites(counter: Counter, tmp_path: Path, build: str) -> None:
    process = counter(build)
    first, second = tmp_path / "first.tptrace", tmp_path / "second.tptrace"
    turns = 0
    with untouched(process), textpoke.attach(process.pid, ring_bytes=RING_BYTES) as target:
        chosen = ["top", "middle", "leaf"]
        with target.trace(chosen, everything=True, output=first) as trace:
            other = target.trace(
                ["leaf", "middle"],
                everything=True,
                output=second,
                force=True,
                tracer="function_graph",
                name="second",
            )

            with other:  # the first time takes longer
                pass

            def act() -> None:
                nonlocal turns
                with other:
                    other.drain()
                    trace.drain()
                turns += 1

            own = while_it_runs(process, act)
            with pytest.raises(textpoke.TextpokeError, match="running on"):
                target.trace(chosen, everything=True).start()
        assert trace.lost == 0
    assert turns == PHASES
    seen = calls(first)
    assert {tid: seen.get(tid) for tid, *_ in own} == {
        tid: {"top": top, "middle": middle, "leaf": leaf} for tid, top, middle, leaf, _ in own
    }


def test_a_filter_is_changed_while_a_program_runs(counter: Counter, tmp_path: Path) -> None:
    process = counter("pie")
    output = tmp_path / "x.tptrace"
    with (
        untouched(process),
        textpoke.attach(process.pid, ring_bytes=RING_BYTES) as target,
        target.trace("top", output=output) as trace,
    ):
        assert trace.filter == ["top"]
        tell(process, "phase 100 1")
        [(first, *_)] = hear_until_end(process)
        trace.filter = ["leaf", "middle"]
        trace.notrace = ["leaf"]
        tell(process, "phase 100 1")
        [(second, *_)] = hear_until_end(process)
        with pytest.raises(textpoke.UnknownFunction):
            trace.filter = ["no_such_function"]
        assert trace.filter == ["leaf", "middle"]
        trace.filter = ["top", "leaf", "middle"]
        trace.notrace = []
        tell(process, "phase 100 1")
        [(third, *_)] = hear_until_end(process)
    seen = calls(output)
    assert seen[first] == {"top": 100}
    assert list(seen[second]) == ["middle"]
    assert set(seen[third]) == {"top", "leaf", "middle"}


def test_a_switch_that_was_made_before_packs_nothing(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = counter("pie")
    with untouched(process), textpoke.attach(process.pid) as target:
        with target.trace(tracer="nop") as trace:
            round_trip = ("function", "nop", "function_graph", "nop", "irqsoff", "nop")
            for tracer in round_trip * 3:
                trace.tracer = tracer
            with monkeypatch.context() as patch:
                patch.delattr(Poke, "pack")
                for tracer in round_trip:
                    trace.tracer = tracer
                    assert target.records.count > 0 or tracer == "nop"
            trace.tracer = "function"
            tell(process, "phase 100 2")
            own = hear_until_end(process)
        assert trace.events == sum(top + middle + leaf for _, top, middle, leaf, _ in own)


def test_captures_of_libc_do_not_pile_up(counter: Counter) -> None:
    process = counter("pie")
    with untouched(process), textpoke.attach(process.pid) as target:
        with target.trace("top", tracer="nop") as trace:
            for _ in range(lib.TP_MAX_REGIONS // 2):  # more than regions, if each took one
                trace.tracer = "wakeup_rt"
                trace.tracer = "irqsoff"
        assert not trace.refused


def test_a_profile_is_exact_among_signals(compile_target: Compile, start_target: Start) -> None:
    process = start_target(compile_target("storms.c", *programs.PIE), "signals")
    with textpoke.attach(process.pid) as target:  # its own threads' stacks stay mapped
        names = {s.address + s.length: s.function for s in target.sites(["leaf", "work"])}
        with target.trace(["leaf", "work"], tracer="profile") as trace:
            assert ask(process, "go") == "going"
            time.sleep(1.0)
            rounds, wrong = map(int, ask(process, "stop").split())
            rows = {names[address]: row for address, row in trace.profile().items()}
        assert trace.overruns == 0
    assert not target.report.residue
    assert rounds > 0
    assert wrong == 0
    assert rows["leaf"].hits == 6 * rows["work"].hits > rounds  # its recursion is a loop
    for row in rows.values():
        assert sum(row.buckets) == row.hits
        ranges = [(*bucket_range(i), n) for i, n in enumerate(row.buckets) if n]
        assert sum(low * low * n for low, _, n in ranges) <= row.squares
        assert row.squares <= sum(high * high * n for _, high, n in ranges)
        assert sum(low * n for low, _, n in ranges) <= row.total
        assert row.total <= sum(high * n for _, high, n in ranges)
        assert bucket_of(row.max) == max(i for i, n in enumerate(row.buckets) if n)
