# SPDX-License-Identifier: Apache-2.0
"""Attach, trace, let go: on every kind of program, with nothing left behind and no call missed."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import TYPE_CHECKING

import programs
import pytest
from observe import ask, hear_until_end, maps, tell, text_equals_files, untouched

import textpoke
from textpoke.report.counts import count

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from conftest import Compile, Start

    from textpoke.agent import Agent

    Counter = Callable[[str], subprocess.Popen[str]]

ROUNDS = 300
# One by one these would be three syncs and three writes a site.
SYNCS = {"pie": 2, "nop5": 3, "nop10": 3, "non-pie": 3}


@pytest.fixture
def counter(compile_target: Compile, start_target: Start) -> Counter:
    """Return the function that starts tests/targets/counter.c in one of its builds."""

    def start(build: str) -> subprocess.Popen[str]:
        if build == "object":
            library = compile_target("counter.c", *programs.OBJECT)
            program = compile_target("counter.c", *programs.OBJECT_USER)
            return start_target(program, str(library))
        return start_target(compile_target("counter.c", *programs.BUILDS[build]))

    return start


def calls(path: Path) -> dict[int, dict[str, int]]:
    """Return calls by thread and function."""
    with textpoke.Capture(path) as capture:
        assert capture.end is not None
        names = [site.function for site in capture.meta.sites]
        return {
            thread.tid: {names[site]: n for site, n in thread.calls.by_site().items()}
            for thread in count(capture).threads
        }


@contextlib.contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[threading.Event]:
    """Run `action` in a thread of ours; the event is set when it is done."""
    done = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as exc:  # noqa: BLE001  # raised again below
            failures.append(exc)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("build", [*programs.BUILDS, "object"])
def test_a_program_is_traced_and_let_go_as_it_was(
    counter: Counter, tmp_path: Path, build: str
) -> None:
    process = counter(build)
    output = tmp_path / "x.tptrace"
    own: list[list[int]] = []
    tell(process, "phase 1 4")  # stacks that libc keeps
    hear_until_end(process)
    with untouched(process):
        with textpoke.attach(process.pid) as target:
            with target.trace(sorted(programs.FUNCTIONS), output=output) as trace:
                assert {site.function for site in trace.chosen} == programs.FUNCTIONS
                assert trace.refused == []
                tell(process, "phase 1000 4")
                own = hear_until_end(process)
            assert trace.lost == 0
        assert target.report is not None
        assert target.report.residue == []
        assert target.report.handler_restored
        assert target.report.text.differing == []
    assert calls(output) == {
        tid: {"top": top, "middle": middle, "leaf": leaf} for tid, top, middle, leaf, _ in own
    }
    assert [row[4] for row in own] == [0, 0, 0, 0]
    assert ask(process, "ping") == "pong"


@pytest.mark.parametrize("build", ["pie", "nop5", "non-pie", "mcount"])
def test_what_was_let_go_can_be_attached_again(
    counter: Counter, tmp_path: Path, build: str
) -> None:
    process = counter(build)
    tell(process, "phase 1 1")
    hear_until_end(process)
    for i in range(3):
        output = tmp_path / f"{i}.tptrace"
        with (
            untouched(process),
            textpoke.attach(process.pid) as target,
            target.trace("top", output=output),
        ):
            tell(process, "phase 10 1")
            [[tid, *_]] = hear_until_end(process)
        assert target.report is not None
        assert target.report.residue == []
        assert calls(output) == {tid: {"top": 10}}


def test_a_capture_holds_every_call_of_four_threads(counter: Counter, tmp_path: Path) -> None:
    process = counter("pie")
    output = tmp_path / "x.tptrace"
    with (
        textpoke.attach(process.pid, ring_bytes=4 << 20) as target,
        target.trace(output=output) as trace,
    ):
        tell(process, "phase 50000 4")  # 250,000 events a thread, a ring holds 262,144
        own = hear_until_end(process)
    assert trace.lost == 0
    assert trace.events == 4 * 50_000 * programs.EVENTS_PER_TOP
    assert calls(output) == {
        tid: {"top": top, "middle": middle, "leaf": leaf} for tid, top, middle, leaf, _ in own
    }


def test_calls_and_losses_add_up_when_the_rings_are_too_small(
    counter: Counter, tmp_path: Path
) -> None:
    process = counter("pie")
    output = tmp_path / "x.tptrace"
    with (
        textpoke.attach(process.pid, ring_bytes=1 << 16) as target,
        target.trace(output=output) as trace,
    ):
        tell(process, "phase 20000 4")
        own = hear_until_end(process)  # nobody drains meanwhile
    made = {row[0]: sum(row[1:4]) for row in own}
    with textpoke.Capture(output) as capture:
        counted = count(capture)
        assert capture.end is not None
        assert capture.end.lost == trace.lost > 0
    assert {t.tid: t.calls.total + t.lost for t in counted.threads} == made


def test_a_flight_recorder_keeps_the_last_calls(counter: Counter, tmp_path: Path) -> None:
    process = counter("pie")
    output = tmp_path / "x.tptrace"
    with (
        textpoke.attach(process.pid, ring_bytes=1 << 16) as target,
        target.trace(output=output, overwrite=True) as trace,
    ):
        tell(process, "phase 20000 2")
        own = hear_until_end(process)
    made = {row[0]: sum(row[1:4]) for row in own}
    with textpoke.Capture(output) as capture:
        counted = count(capture)
    assert {t.tid: t.calls.total + t.lost for t in counted.threads} == made
    assert all(t.calls.total == (1 << 16) // 16 for t in counted.threads)
    assert trace.lost == sum(t.lost for t in counted.threads)


def test_events_taken_while_the_program_runs_are_whole(counter: Counter, tmp_path: Path) -> None:
    process = counter("pie")
    output = tmp_path / "x.tptrace"
    with (
        textpoke.attach(process.pid, ring_bytes=1 << 20) as target,
        target.trace(output=output) as trace,
    ):
        own: list[list[int]] = []
        tell(process, "phase 300000 2")
        with meanwhile(lambda: own.extend(hear_until_end(process))) as done:
            while not done.is_set():
                trace.run(seconds=0.05)
    made = {row[0]: sum(row[1:4]) for row in own}
    with textpoke.Capture(output) as capture:
        counted = count(capture)
    assert {t.tid: t.calls.total + t.lost for t in counted.threads} == made
    assert [t.unknown for t in counted.threads] == [0, 0]


@pytest.mark.parametrize("build", ["pie", "non-pie", "nop5", "mcount"])
def test_toggling_under_hot_threads_breaks_no_result(counter: Counter, build: str) -> None:
    process = counter(build)
    assert ask(process, "hot 2") == "hot"
    with untouched(process), textpoke.attach(process.pid) as target:
        for _ in range(ROUNDS):
            with target.trace() as trace:
                pass
            assert trace.on is not None
            assert trace.off is not None
            assert (trace.on.sites, trace.on.finished) == (3, 3)
    tell(process, "stop")
    rows = hear_until_end(process)
    assert [row[4] for row in rows] == [0, 0]
    assert all(row[1] > 0 and row[2] == row[1] and row[3] == 3 * row[1] for row in rows)


def test_a_recording_under_hot_threads_counts_what_it_says(
    counter: Counter, tmp_path: Path
) -> None:
    process = counter("pie")
    assert ask(process, "hot 2") == "hot"
    output = tmp_path / "x.tptrace"
    with textpoke.attach(process.pid) as target, target.trace(output=output) as trace:
        trace.run(seconds=0.2)
    tell(process, "stop")
    rows = hear_until_end(process)
    with textpoke.Capture(output) as capture:
        counted = count(capture)
    assert counted.events == trace.events > 0
    assert counted.unknown == 0
    assert {t.tid for t in counted.threads} == {row[0] for row in rows}


@pytest.mark.parametrize("way", ["unload", "reload"])
def test_a_library_that_is_closed_while_it_is_traced_is_left_alone(
    counter: Counter, way: str
) -> None:
    process = counter("object")
    with textpoke.attach(process.pid) as target:
        trace = target.trace()
        trace.start()
        tell(process, "phase 10 1")
        hear_until_end(process)
        assert ask(process, way) == "reloaded"
        with contextlib.suppress(textpoke.BatchRefused):  # the sites are no longer what they were
            trace.stop()
        report = target.detach()
    assert report.left_alone == 3
    assert report.residue == []
    assert text_equals_files(process.pid)
    if way == "reload":
        assert ask(process, "ping") == "pong"
    tell(process, "quit 0")
    assert process.wait() == 0


@pytest.mark.parametrize("build", SYNCS)
def test_a_batch_costs_syncs_and_writes_by_the_page(counter: Counter, build: str) -> None:
    process = counter(build)
    with (
        textpoke.attach(process.pid) as target,
        target.trace(sorted(programs.FUNCTIONS), mode="int3") as trace,
    ):
        pass
    phases = SYNCS[build]
    for outcome in (trace.on, trace.off):
        assert outcome is not None
        assert outcome.sites == outcome.finished == 3
        assert outcome.syncs == phases
        assert outcome.writes <= phases * outcome.pages
        assert outcome.conflicts == 0


def test_text_is_never_mapped_writable(counter: Counter) -> None:
    process = counter("pie")
    assert ask(process, "hot 2") == "hot"
    seen: set[str] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(line.split()[1] for line in maps(process.pid))

    with meanwhile(watch):
        try:
            with textpoke.attach(process.pid) as target:
                for _ in range(50):
                    with target.trace():
                        pass
        finally:
            done.set()
    assert any("x" in perms for perms in seen)
    assert not [perms for perms in seen if "w" in perms and "x" in perms]


def test_a_place_that_the_program_takes_meanwhile_is_planned_anew(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = counter("pie")
    with untouched(process), textpoke.attach(process.pid) as target:
        map_code, tries = type(target.agent).map_code, []

        def first_taken(agent: Agent, address: int, size: int) -> None:
            tries.append(address)
            if len(tries) == 1:
                raise textpoke.AgentFailed("mapping", errno.EEXIST)
            map_code(agent, address, size)

        monkeypatch.setattr(type(target.agent), "map_code", first_taken)
        with target.trace() as trace:
            assert len(trace.chosen) == len(programs.FUNCTIONS)
        assert len(tries) > 1


def test_a_target_that_loses_its_memory_under_an_attach_has_exited(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the opens find of a process that ends is a race: here it is lost at the last of them.
    process = counter("pie")
    monkeypatch.setattr("textpoke.agent._mem_path", lambda pid: f"/proc/{pid}/task/1/mem")
    with pytest.raises(textpoke.TargetExited, match="exited during attach"):
        textpoke.attach(process.pid)
    monkeypatch.undo()
    with textpoke.attach(process.pid):
        pass
