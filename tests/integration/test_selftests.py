# SPDX-License-Identifier: Apache-2.0
"""The kernel's ftrace selftests, by name, translated to a process (docs/selftests.md).

Each is written anew from what the kernel's test of that name promises its users.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import struct
import time
from typing import TYPE_CHECKING, Any

import live
import programs
import pytest
from observe import ask, hear_until_end, tell, textpoke, untouched, wait_until

import textpoke as api
from textpoke.arguments import parse
from textpoke.calls import Calls, all_calls
from textpoke.control_verbs import ErrorLog, answer
from textpoke.decode import Decoder
from textpoke.report import latency
from textpoke.status import read_status
from textpoke.tracer_names import TRACERS

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from conftest import Compile, Start
    from live import Running

    Counts = dict[str, int]

ROUNDS = 500
MOST_ERRNO = 133
FUNCTIONS = {
    *("schedule", "sys_open", "Sys_close", "raw_spin_lock", "raw_spin_unlock"),
    *("mutex_trylock", "sched_clock", "schedule_timeout"),
}
NOP5 = bytes.fromhex("0f 1f 44 00 00")
EVENT_BYTES = 16


@pytest.fixture
def program(compile_target: Compile, start_target: Start) -> subprocess.Popen[str]:
    """tests/targets/selftests.c, running."""
    process = start_target(compile_target("selftests.c", *programs.PIE))
    ask(process, "rounds 1 4")  # stacks that libc keeps
    return process


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of our own for captures and the control socket."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", os.fspath(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def running(program: subprocess.Popen[str], here: Path) -> Iterator[Running]:
    """A recording of all functions of the program, with function_graph, into live.OUTPUT."""
    assert here.is_dir()
    with live.running(program, tracer="function_graph") as running:
        yield running


def by_thread(text: str) -> dict[int, Counts]:
    """The program's own counts: by thread, by function."""
    return {
        int(tid): {name: n for name, n in counts.items() if name != "number"}
        for tid, counts in json.loads(text).items()
    }


def rounds(process: subprocess.Popen[str], number: int = ROUNDS, threads: int = 2) -> Counts:
    """Let the program work; its own counts."""
    return summed(by_thread(ask(process, f"rounds {number} {threads}")))


def summed(counts: dict[int, Counts]) -> Counts:
    """Over all threads."""
    total: collections.Counter[str] = collections.Counter()
    for one in counts.values():
        total.update(one)
    return dict(total)


def only(counts: Counts, *functions: str) -> Counts:
    """The counts of some functions."""
    return {name: counts[name] for name in functions}


def calls_in(path: str | Path) -> Calls:
    """All calls of a capture that is whole."""
    with api.Capture(path) as capture:
        assert capture.cut_off is None
        return all_calls(capture)


def counted(path: str | Path) -> Counts:
    """Calls of each function in a capture, with whatever tracer."""
    total: collections.Counter[str] = collections.Counter()
    for counts in counted_by_thread(path).values():
        total.update(counts)
    return dict(total)


def counted_by_thread(path: str | Path) -> dict[int, Counts]:
    """The same, by thread."""
    with api.Capture(path) as capture:
        assert capture.cut_off is None
        names = [site.function for site in capture.meta.sites]
        events = Decoder(capture).all()
    found: dict[int, Counts] = {}
    entries = events.type == 1
    for tid, site in zip(events.tid[entries].tolist(), events.site[entries].tolist(), strict=True):
        counts = found.setdefault(tid, {})
        counts[names[site]] = counts.get(names[site], 0) + 1
    return found


def finished(calls: Calls) -> Counts:
    """Calls of each function that have an end, and none that has not."""
    assert calls.counts.unfinished == calls.counts.orphans == 0
    names = [name.partition("!")[2] for name in calls.names]
    return dict(collections.Counter(names[site] for site in calls.site.tolist()))


def text_of(path: str | Path, *options: str) -> list[str]:
    """What `report --text` prints."""
    result = textpoke("report", "--text", *options, path)
    assert result.code == 0, result
    return result.out.splitlines()


def hits(trace: api.Trace) -> Counts:
    """What the profile tracer has counted, by function."""
    names = {address: site.function for site, address in trace.sites_by_return()}
    return {names[address]: row.hits for address, row in trace.profile().items() if row.hits}


# --- 00basic ---


def test_basic1(program: subprocess.Popen[str], here: Path) -> None:
    with untouched(program), api.attach(program.pid) as target:
        with target.trace(tracer="nop", output="x.tptrace") as trace:
            rounds(program)
            assert (trace.tracer, trace.events, target.records.count) == ("nop", 0, 0)
    assert text_of(here / "x.tptrace")[0] == "# tracer: nop"


def test_basic2(program: subprocess.Popen[str]) -> None:
    with untouched(program), api.attach(program.pid) as target, target.trace() as trace:
        for name in TRACERS:
            trace.tracer = name
            assert trace.tracer == name
            rounds(program, 20)
        with pytest.raises(api.UnknownTracer, match="function_graph"):
            trace.tracer = "hwlat"
        assert trace.tracer == list(TRACERS)[-1]


def test_basic3(program: subprocess.Popen[str], here: Path) -> None:
    before_ns = time.monotonic_ns()
    with api.attach(program.pid) as target, target.trace(output="x.tptrace"):
        rounds(program)
    after_ns = time.monotonic_ns()
    with api.Capture(here / "x.tptrace") as capture:
        events = Decoder(capture).all()
        start_ns = capture.meta.clock.monotonic_ns
    assert before_ns <= start_ns + int(events.ts_ns.min())
    assert start_ns + int(events.ts_ns.max()) <= after_ns


def test_basic4(running: Running) -> None:
    assert set(running.tool("filter", "--available").split()) >= FUNCTIONS
    assert set(TRACERS) <= set(running.tool("tracers").split())


def test_snapshot(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("trigger", "trace_mark:snapshot:1")
    first = rounds(program)
    ask(program, "mark now")
    second = rounds(program)
    ask(program, "mark later")  # its count is over
    running.drain(0.2)
    (path,) = running.recording.snapshots
    taken = counted(path)
    assert only(taken, *FUNCTIONS) == only(first, *FUNCTIONS)
    running.recording.stop()
    everything = counted(live.OUTPUT)  # what a snapshot holds is not taken from the recording
    assert everything["schedule"] == first["schedule"] + second["schedule"]


def test_trace_pipe(running: Running, program: subprocess.Popen[str], here: Path) -> None:
    mine = rounds(program, 100)
    running.drain(0.1)
    sizes = []
    for _ in range(2):  # reading takes nothing away, and never waits
        with api.Capture(here / live.OUTPUT) as capture:
            assert capture.end is None
            sizes.append(int((Decoder(capture).all().type == 1).sum()))
    assert sizes == [sum(mine.values())] * 2
    assert any("schedule()" in line for line in text_of(here / live.OUTPUT))
    more = rounds(program, 100)
    running.recording.stop()
    assert sum(counted(live.OUTPUT).values()) == sum(mine.values()) + sum(more.values())


def test_ringbuffer_order(program: subprocess.Popen[str], here: Path) -> None:
    with api.attach(program.pid) as target:
        with target.trace(output="x.tptrace", tracer="function_graph") as trace:
            tell(program, f"rounds {ROUNDS} 4")
            trace.run(seconds=0.3)
    ask(program, "mark end")
    with api.Capture(here / "x.tptrace") as capture:
        decoder = Decoder(capture)
        for tid in capture.threads:
            last = -1
            for events in decoder.thread(tid):
                times = events.ts_ns.tolist()
                assert times == sorted(times)
                assert times[0] >= last
                last = times[-1]


@pytest.mark.parametrize("ring_bytes", [1 << 16, 1 << 18])
def test_ringbuffer_size(program: subprocess.Popen[str], here: Path, ring_bytes: int) -> None:
    with api.attach(program.pid, ring_bytes=ring_bytes) as target:
        with target.trace(output="x.tptrace", overwrite=True) as trace:
            mine = by_thread(ask(program, "rounds 4000 2"))
    kept = {tid: sum(counts.values()) for tid, counts in counted_by_thread("x.tptrace").items()}
    assert kept == dict.fromkeys(mine, ring_bytes // EVENT_BYTES)
    assert trace.lost == sum(summed(mine).values()) - sum(kept.values())
    assert (here / "x.tptrace").stat().st_size >= 2 * ring_bytes


def test_trace_marker(program: subprocess.Popen[str], here: Path) -> None:
    arguments = [parse("trace_mark(text/s64)")]
    with api.attach(program.pid) as target:
        with target.trace("trace_mark", output="x.tptrace", arguments=arguments):
            ask(program, "mark test input 1")
            ask(program, "mark of the program itself")
    lines = [line for line in text_of(here / "x.tptrace") if "trace_mark(" in line]
    assert len(lines) == 2
    assert "test input 1" in lines[0]
    assert "of the program itself" in lines[1]


def test_trace_marker_raw(program: subprocess.Popen[str], here: Path) -> None:
    arguments = [parse("trace_mark_raw(arg1, arg2)")]
    written = [(i, (0x0123456789ABCDEF * i) & (1 << 64) - 1) for i in range(1, 20)]
    with api.attach(program.pid) as target:
        with target.trace("trace_mark_raw", output="x.tptrace", arguments=arguments):
            for number, value in written:
                ask(program, f"raw {number} {value}")
    calls = calls_in(here / "x.tptrace")
    assert [tuple(calls.entry_words(row)) for row in range(len(calls))] == written


# --- ftrace: function_graph ---


def test_fgraph_filter(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("filter", "schedule")
    mine = rounds(program)
    running.recording.stop()
    assert finished(calls_in(live.OUTPUT)) == only(mine, "schedule")
    calls = {line.split("|")[1].strip() for line in text_of(live.OUTPUT) if "()" in line}
    assert calls == {"schedule();"}


def test_fgraph_filter_stack(running: Running, program: subprocess.Popen[str]) -> None:
    running.tool("filter", "schedule")
    running.tool("trigger", "raw_spin_lock:stacktrace")  # of the calls that are recorded
    mine = rounds(program)
    running.drain(0.1)
    running.tool("trigger", "!raw_spin_lock:stacktrace")
    more = rounds(program)
    running.recording.stop()
    assert counted(live.OUTPUT) == {"schedule": mine["schedule"] + more["schedule"]}
    with api.Capture(live.OUTPUT) as capture:
        stacks = [mark for mark in live.marks(capture) if mark.get("command") == "stacktrace"]
    assert stacks


GRAPHS: dict[str, tuple[str, ...]] = {
    "top": ("schedule", "sys_open", "mutex_trylock"),
    "one": ("raw_spin_*",),
    "two": ("sys_open", "Sys_close", "raw_spin_unlock"),
    "three": ("sched*",),
}


def matching(counts: Counts, globs: Sequence[str]) -> Counts:
    """The counts of the functions that plain globs mean."""
    return {
        name: n
        for name, n in counts.items()
        if any(name.startswith(g[:-1]) if g.endswith("*") else name == g for g in globs)
    }


def test_fgraph_multi(program: subprocess.Popen[str], here: Path) -> None:
    with untouched(program), api.attach(program.pid) as target, contextlib.ExitStack() as stack:
        for name, globs in GRAPHS.items():
            trace = target.trace(
                globs, tracer="function_graph", name=name, output=f"{name}.tptrace"
            )
            stack.enter_context(trace)
        mine = rounds(program)
    for name, globs in GRAPHS.items():
        assert finished(calls_in(here / f"{name}.tptrace")) == matching(mine, globs), name


def test_fgraph_multi_filter(program: subprocess.Popen[str]) -> None:
    def graph(name: str, include: str, exclude: str) -> api.Trace:
        wanted = [include] if include else ()
        trace = target.trace(wanted, [exclude], tracer="function_graph", name=name)
        trace.start()
        return trace

    def on() -> set[str]:
        return {site.function for site in sites if target.records.is_on(site.address)}

    scheds = {"schedule", "sched_clock"}
    locks = {"raw_spin_lock", "raw_spin_unlock", "mutex_trylock"}
    with untouched(program), api.attach(program.pid) as target:
        sites = target.sites()
        first = graph("1", "*sched*", "*time*")
        assert on() == scheds
        second = graph("2", "*lock*", "*clock*")
        assert on() == scheds | locks
        first.stop()
        assert on() == locks
        second.stop()
        assert on() == set()
        second = graph("2", "*lock*", "*clock*")
        assert on() == locks
        first = graph("1", "*sched*", "*time*")
        assert on() == scheds | locks
        second.stop()
        assert on() == scheds
        first.stop()
        # Everything but, and filters that change while both run.
        first, second = graph("1", "", "*lock*"), graph("2", "", "*sched*")
        both = {site.function for site in sites} - {"sched_clock"}
        assert on() == both
        first.filter("sched*")
        assert on() == both | {"sched_clock"}
        second.filter("*spin*")
        assert on() == {"schedule", "sched_clock", "schedule_timeout"} | locks - {"mutex_trylock"}
        mine = rounds(program)
        second.stop()
        first.stop()
        assert on() == set()
    assert first.events == 2 * sum(matching(mine, ["sched*"]).values())
    assert second.events == 2 * sum(matching(mine, ["raw_spin_*"]).values())


def test_fgraph_profiler(program: subprocess.Popen[str], here: Path) -> None:
    with untouched(program), api.attach(program.pid) as target:
        graph = target.trace("*lock*", tracer="function_graph", name="g", output="x.tptrace")
        with target.trace("sched*", tracer="profile") as profile, graph:
            mine = rounds(program)
            assert hits(profile) == matching(mine, ["sched*"])
    names = ("raw_spin_lock", "raw_spin_unlock", "mutex_trylock", "sched_clock")
    assert finished(calls_in(here / "x.tptrace")) == only(mine, *names)


def test_fgraph_retval(program: subprocess.Popen[str], here: Path) -> None:
    arguments = [parse("fail_*", returns=True), parse("succeed", returns=True)]
    with untouched(program), api.attach(program.pid) as target:
        with target.trace(
            ["fail_*", "succeed"],
            tracer="function_graph",
            output="x.tptrace",
            arguments=arguments,
        ):
            ask(program, "fail")
    lines = text_of(here / "x.tptrace")
    errors = [str(-error) for error in range(1, MOST_ERRNO + 1)]
    for function in ("fail_int", "fail_long"):
        shown = [line.rsplit("=", 1)[1].strip(" */") for line in lines if function in line]
        assert shown == errors, function
    assert sum("succeed" in line for line in lines) == MOST_ERRNO
    assert {
        line.rsplit("=", 1)[1].strip(" */") for line in lines if "succeed" in line
    } == {"0"}
    calls = calls_in(here / "x.tptrace")
    rows = calls.of(*calls.sites_named("fail_pointer"))
    assert [calls.exit_words(int(row)) for row in rows] == [
        [(1 << 64) - error] for error in range(1, MOST_ERRNO + 1)
    ]
